"""The reference backend's tensorrt_llm: the C++ model's tensors, served by ``deploy``.

A request that streams gets a response per step with its new tokens; any other gets one response,
the prompt's tokens in front unless exclude_input_in_output. The last response has the final flag;
when the end token ended a stream it has no tokens. Requests are in flight with or without
decoupled_mode; without it there is one response per request, and as in TensorRT-LLM neither streams
nor batches. With it, each prompt of a batch is answered on its own, and ``batch_index`` says which.

A request ends early when its sender cancels it, or when another with the same request id says
``stop``. Triton does not tell the models of an ensemble of a cancellation, but for those that begin
after it; so postprocessing says ``stop``.
"""

import json
import os
import threading
from pathlib import Path

import torch
import triton_python_backend_utils as pb_utils
from answer import Answer, Responses
from asked import read_request, value
from series import Series

from trtllm_deploy.reference.generation import Chunk, open_engine
from trtllm_deploy.reference.limits import CacheSettings

_CACHE_SETTINGS = {
    "batch_scheduler_policy": str,
    "enable_kv_cache_reuse": lambda text: text == "true",
    "enable_chunked_context": lambda text: text == "true",
    "max_tokens_in_paged_kv_cache": int,
    "kv_cache_free_gpu_mem_fraction": float,
}


class TritonPythonModel:
    """The python backend's interface."""

    def initialize(self, args):
        """Open the engine folder that gpt_model_path names."""
        config = json.loads(args["model_config"])
        given = {key: value["string_value"] for key, value in config["parameters"].items()}
        self._decoupled = config["model_transaction_policy"]["decoupled"]
        self._kinds = {output["name"]: output["data_type"] for output in config["output"]}
        self._excludes_input = given.get("exclude_input_in_output") == "true"
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))  # Triton works beside us
        self._engine = open_engine(
            Path(given["gpt_model_path"]),
            CacheSettings(
                **{
                    name: read(given[name])
                    for name, read in _CACHE_SETTINGS.items()
                    if name in given
                }
            ),
            device="cuda" if torch.cuda.is_available() else "cpu",
        )
        self._answers = {}  # the open ones, by identity
        statistics = self._engine.statistics()
        self._series = Series(args["model_name"], args["model_version"], statistics)
        self._iterations = os.environ.get("TRTLLM_ITERATIONS_FILE")
        self._closing = threading.Event()
        period_ms = float(given.get("cancellation_check_period_ms", 100))
        self._watch = threading.Thread(target=self._watch_over, args=(period_ms / 1000,))
        self._watch.start()

    def execute(self, requests):
        """Hand the requests to the engine; the answers come from its thread."""
        for request in requests:
            inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            prompts = len(inputs["input_lengths"])
            responses = Responses(request, prompts)
            try:
                if value(inputs, "stop", False):
                    self._stop(responses.id)
                    responses.send(pb_utils.InferenceResponse([]), last_of=prompts)
                    continue
                if "input_ids" not in inputs:
                    raise ValueError("input_ids is missing")
                if not self._decoupled and (prompts > 1 or value(inputs, "streaming", False)):
                    raise ValueError("streaming, and a batch above 1, need decoupled_mode")
            except ValueError as error:
                failure = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
                responses.send(failure, last_of=prompts)
                continue
            for row in range(prompts):
                one = {name: array[row : row + 1] for name, array in inputs.items()}
                self._start(responses, one, row if prompts > 1 else None)

    def _start(self, responses, inputs, row):
        answer = Answer(responses, inputs, row, self._kinds, self._excludes_input)
        try:
            answer.handle = self._engine.submit(read_request(inputs), answer.on_chunk)
            self._answers[id(answer)] = answer
        except ValueError as error:
            answer.fail(str(error))

    def _stop(self, request_id):
        if not request_id:
            raise ValueError("stop needs the request id of the request to stop")
        for answer in list(self._answers.values()):
            if answer.responses.id == request_id:
                self._engine.cancel(answer.handle)
                answer.on_chunk(Chunk((), final=True))

    def _watch_over(self, period):
        while not self._closing.wait(period):
            self._series.show(self._engine.statistics())
            self._write_iterations()
            for key, answer in list(self._answers.items()):
                if answer.over:  # not sooner: Triton's thread may still use what is_cancelled asked
                    del self._answers[key]
                elif answer.responses.is_cancelled():
                    self._engine.cancel(answer.handle)
                    answer.fail("the request was cancelled", pb_utils.TritonError.CANCELLED)

    def _write_iterations(self):
        """Append what the steps did, a JSON line each, to the file that the environment names."""
        if self._iterations and (records := self._engine.iterations()):
            with Path(self._iterations).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(each) + "\n" for each in records)

    def finalize(self):
        """End generation, so that the process can exit."""
        self._closing.set()
        self._watch.join()
        self._write_iterations()
        self._engine.close()
