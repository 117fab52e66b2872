"""The reference backend's tensorrt_llm: the C++ model's tensors, served by ``deploy``.

A request that streams gets a response per step with its new tokens; any other gets one response,
the prompt's tokens in front unless exclude_input_in_output. The last response has the final flag;
when the end token ended a stream it has no tokens. Without decoupled_mode there is one response per
request, and requests are batched as Triton's dynamic batcher hands them over. An input that asks
for what this backend cannot do is an error of that request; none is silently ignored.
"""

import json
import os
import threading
from pathlib import Path

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from deploy.generation import CacheSettings, Request, open_engine
from deploy.sampling import Choice

_HONOURED = {
    "input_ids",
    "input_lengths",
    "request_output_len",
    "end_id",
    "stop_words_list",
    "temperature",
    "runtime_top_k",
    "runtime_top_p",
    "random_seed",
    "seed",
    "min_length",
    "min_tokens",
    "streaming",
    "exclude_input_in_output",
    "return_num_input_tokens",
    "return_num_output_tokens",
}
_WITHOUT_EFFECT = {  # on a decoder-only model, with one beam, in a batch without padding
    "pad_id",
    "decoder_input_ids",
    "decoder_input_lengths",
    "len_penalty",
    "early_stopping",
    "beam_search_diversity_rate",
    "return_perf_metrics",  # it has no such times; the outputs stay away
}
_NEUTRAL = {  # the values that ask for nothing
    "beam_width": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "return_log_probs": 0,
    "return_context_logits": 0,
    "return_generation_logits": 0,
    "stop": 0,
}
_CHUNKS_PER_CANCELLATION_CHECK = 8
_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    """The python backend's interface."""

    def initialize(self, args):
        """Open the engine folder that gpt_model_path names."""
        config = json.loads(args["model_config"])
        self._parameters = {
            key: value["string_value"] for key, value in config["parameters"].items()
        }
        self._decoupled = config["model_transaction_policy"]["decoupled"]
        self._excludes_input = self._flag("exclude_input_in_output")
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))  # Triton works beside us
        most = self._parameters.get("max_tokens_in_paged_kv_cache")
        self._engine = open_engine(
            Path(self._parameters["gpt_model_path"]),
            CacheSettings(
                enable_kv_cache_reuse=self._flag("enable_kv_cache_reuse"),
                enable_chunked_context=self._flag("enable_chunked_context"),
                max_tokens_in_paged_kv_cache=None if most is None else int(most),
                kv_cache_free_gpu_mem_fraction=float(
                    self._parameters.get("kv_cache_free_gpu_mem_fraction", 0.9)
                ),
            ),
            device="cuda" if torch.cuda.is_available() else "cpu",
        )

    def _flag(self, name):
        return self._parameters.get(name, "false") == "true"

    def execute(self, requests):
        """Hand the requests to the engine; without decoupled_mode wait for their answers."""
        answers = [self._start(request) for request in requests]
        return None if self._decoupled else [answer.wait() for answer in answers]

    def _start(self, request):
        inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        sender = request.get_response_sender() if self._decoupled else None
        answer = Answer(self._engine, inputs, sender, self._excludes_input)
        try:
            answer.handle = self._engine.submit(read_request(inputs), answer.on_chunk)
        except ValueError as error:
            answer.fail(str(error))
        return answer

    def finalize(self):
        """End generation, so that the process can exit."""
        self._engine.close()


def read_request(inputs):
    """The engine's request of a Triton request. Raises ValueError for what it cannot do."""
    for name, value in inputs.items():
        if name in _HONOURED or name in _WITHOUT_EFFECT or value.size == 0:
            continue
        if name not in _NEUTRAL or value.ravel()[0] != _NEUTRAL[name]:
            asked = f" {value.ravel()[0]}" if name in _NEUTRAL else ""
            raise ValueError(f"the reference backend does not support {name}{asked}")
    if inputs["input_ids"].shape[0] != 1:
        raise ValueError("the reference backend takes one prompt per request")
    end_id = int(_value(inputs, "end_id", -1))
    length = int(inputs["input_lengths"].ravel()[0])
    return Request(
        input_ids=tuple(inputs["input_ids"].ravel()[:length].tolist()),
        max_new_tokens=int(inputs["request_output_len"].ravel()[0]),
        end_id=end_id,
        streaming=bool(_value(inputs, "streaming", False)),
        stop_words=_words(inputs.get("stop_words_list")),
        choice=Choice(
            temperature=float(_value(inputs, "temperature", 1.0)),
            top_k=int(_value(inputs, "runtime_top_k", 0)),
            top_p=float(_value(inputs, "runtime_top_p", 0.0)),
            seed=int(_value(inputs, "random_seed", _value(inputs, "seed", 0))),
            min_tokens=int(_value(inputs, "min_length", _value(inputs, "min_tokens", 0))),
            end_id=end_id,
        ),
    )


def _value(inputs, name, default):
    return inputs[name].ravel()[0] if name in inputs else default


def _words(lists):
    """Words of a TensorRT-LLM word list [1, 2, longest]: ids, then where each word ends or -1."""
    if lists is None or lists.size == 0:
        return ()
    ids, ends = lists.reshape(2, -1).tolist()
    starts = [0, *ends]
    return tuple(
        tuple(ids[start:end]) for start, end in zip(starts, ends, strict=False) if end > start >= 0
    )


class Answer:
    """Turns the engine's chunks for one request into Triton responses."""

    def __init__(self, engine, inputs, sender, excludes_input):
        self.handle = None
        self._engine = engine
        self._sender = sender
        self._inputs = inputs
        self._streaming = bool(_value(inputs, "streaming", False))
        excludes = bool(_value(inputs, "exclude_input_in_output", excludes_input))
        self._with_prompt = not (self._streaming or excludes)
        self._chunks = 0
        self._response = None
        self._done = threading.Event()

    def on_chunk(self, chunk):
        """Send the chunk on; called from the engine's thread."""
        if chunk.error is not None:
            self.fail(chunk.error)
            return
        self._chunks += 1
        if self._cancelled():
            self._engine.cancel(self.handle)
            self._sender.send(flags=_FINAL)
            return
        self._send(pb_utils.InferenceResponse(self._tensors(chunk.tokens)), chunk.final)

    def fail(self, message):
        """End the answer with an error."""
        self._send(pb_utils.InferenceResponse(error=pb_utils.TritonError(message)), True)

    def wait(self):
        """Without decoupled_mode: the one response, once it is there."""
        self._done.wait()
        return self._response

    def _cancelled(self):
        return (
            self.handle is not None
            and self._sender is not None
            and self._chunks % _CHUNKS_PER_CANCELLATION_CHECK == 0
            and self._sender.is_cancelled()
        )

    def _send(self, response, final):
        if self._sender is not None:
            self._sender.send(response, flags=_FINAL if final else 0)
        elif final:
            self._response = response
            self._done.set()

    def _tensors(self, tokens):
        length = int(self._inputs["input_lengths"].ravel()[0])
        prompt = self._inputs["input_ids"].ravel()[:length]
        ids = np.array(tokens, np.int32)
        shown = np.concatenate([prompt, ids]) if self._with_prompt else ids
        tensors = [
            pb_utils.Tensor("output_ids", shown.reshape(1, 1, -1)),
            pb_utils.Tensor("sequence_length", np.array([[len(shown)]], np.int32)),
        ]
        for name, count in (("num_input_tokens", length), ("num_output_tokens", len(tokens))):
            if _value(self._inputs, f"return_{name}", False):
                tensors.append(pb_utils.Tensor(name, np.array([[count]], np.int32)))
        return tensors
