"""The ensemble's work by calls instead of wires, on any Triton with the python backend.

Preprocessing, tensorrt_llm and postprocessing are asked one after the other (business logic
scripting). Which tensor goes where says ``wiring.json`` beside this file: the ensemble's steps.

- An instance answers one request at a time; more instances (bls_instance_count) serve more at once.
  Threads would be lighter, but with several that iterate over responses requests hung and stubs
  crashed (seen: Triton 2.51). By its source, ``ResponseIterator::Next`` waits for Python's lock
  with its own in hand; the thread that hands out responses needs that one while it holds the one
  that the next ``exec`` needs.
- ``accumulate_tokens``: postprocessing gets all tokens of a stream so far, not the new ones alone.
  So ``text_output`` of a response is the text of the whole answer so far, and the last one is the
  answer: a client replaces what it shows, it doesn't append. An unfinished character at its end
  waits for its rest. ``output_ids`` and ``sequence_length`` are of the new tokens all the same.
- When a client cancels while it waits or between two responses, its request ends: tensorrt_llm
  gets a ``stop`` under the request's id. An answer that is not streamed is finished.
- The final flag comes in an empty response: that a response is the last one shows only when the
  model says nothing more.
"""

import json
import uuid
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from spent import responses

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
_OF_STREAMS = {"STREAMING", "EXCLUDE_INPUT_IN_OUTPUT"}
"""What preprocessing gets of a stream whose pieces postprocessing is to join."""
BROKEN = "\N{REPLACEMENT CHARACTER}"


class TritonPythonModel:
    """The python backend's interface."""

    def initialize(self, args):
        """Read the wiring."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self._accumulates = parameters.get("accumulate_tokens", "false") == "true"
        self._decoupled = config["model_transaction_policy"]["decoupled"]
        self._reshaped = {each["name"] for each in config["input"] if each.get("reshape")}
        steps = json.loads((Path(__file__).parent / "wiring.json").read_text(encoding="utf-8"))
        steps[1]["model"] = parameters.get("tensorrt_llm_model_name", "tensorrt_llm")
        self._before, self._model, self._after = (Step(**step) for step in steps)
        self._taken = {name for step in steps for name in step["input_map"].values()}

    def execute(self, requests):
        """Answer, one after the other."""
        if not self._decoupled:
            return [self._answer(self._read(request), _wanted(request)) for request in requests]
        for request in requests:
            sender = request.get_response_sender()
            self._stream(self._read(request), _wanted(request), sender)
        return None

    def _read(self, request):
        """The request's tensors by name; what ``reshape`` took of their dimensions is back."""
        tensors = {tensor.name(): tensor for tensor in request.inputs()}
        for name in self._reshaped & tensors.keys():
            tensors[name] = pb_utils.Tensor(name, tensors[name].as_numpy().reshape(-1, 1))
        return tensors

    def _answer(self, tensors, wanted):
        try:
            [response] = self._responses(tensors, wanted, lambda: False)
            return response
        except Exception as error:
            return _failure(error)

    def _stream(self, tensors, wanted, sender):
        try:
            if not sender.is_cancelled():  # else it waited in vain
                for response in self._responses(tensors, wanted, sender.is_cancelled):
                    sender.send(response)
        except Exception as error:
            sender.send(_failure(error))
        sender.send(flags=_FINAL)

    def _responses(self, tensors, wanted, is_cancelled):
        """The responses to one request, as they come: of its outputs those that are ``wanted``.

        Triton would throw away the others itself, and crash with Python 3.12 (seen: 2.51): it frees
        numpy's memory without Python's lock.
        """
        self._refuse(tensors)
        call = str(uuid.uuid4())  # the client's id may be empty, or used twice
        text_call = f"text of {call}"
        streams = _value(tensors, "stream", False)
        accumulates = self._accumulates and streams
        before = self._before.request(tensors, text_call, _OF_STREAMS if accumulates else ())
        tensors = {**tensors, **self._before.read(before.exec())}
        so_far = Accumulated(tensors, self._after) if accumulates else None
        try:
            for said in self._said(tensors, call, is_cancelled):
                shown = so_far.add(said) if so_far else said
                passed_on = self._after.copies(said)
                # kept until its tensors are sent: they are views of its memory
                response = self._after.request(shown, text_call, without=passed_on).exec()
                text = self._after.read(response)
                answer = {**said, **(so_far.whole(text) if so_far else text), **passed_on}
                yield pb_utils.InferenceResponse(
                    [renamed(value, name) for name, value in answer.items() if name in wanted]
                )
        finally:
            if streams and not accumulates:  # postprocessing may wait for more
                empty = self._after.chunk(np.empty((1, 1, 0), np.int32))
                self._after.request(empty, text_call).exec()

    def _said(self, tensors, call, is_cancelled):
        """The model's responses, until it ends or the client cancels."""
        request, stopped = self._model.request(tensors, call), False
        for response in responses(request) if self._decoupled else [request.exec()]:
            said = self._model.read(response)
            if not stopped and is_cancelled():
                self._stop(call)
                stopped = True
            if said and not stopped:
                yield said

    def _refuse(self, tensors):
        """Raises ValueError for what is missing, and for an input that no step would take."""
        for name in ("text_input", "max_tokens"):
            if name not in tensors:
                raise ValueError(f"{name} is missing")
        others = {name: tensors[name].as_numpy() for name in tensors.keys() - self._taken}
        asked = sorted(name for name, value in others.items() if value.size != 1 or value.item())
        if asked:
            raise ValueError(
                f"tensorrt_llm_bls does not support {', '.join(asked)}: it has no"
                " speculative decoding and takes no images"
            )
        if _value(tensors, "stream", False) and len(tensors["text_input"].as_numpy()) > 1:
            raise ValueError("a request that streams has one prompt: send one request for each")
        if self._accumulates and _value(tensors, "beam_width", 1) > 1:
            raise ValueError("with accumulate_tokens beam_width is 1")

    def _stop(self, call):
        """Have the model end the call; it insists on the other inputs and ignores them."""
        nothing = ("input_ids", "input_lengths", "request_output_len")
        inputs = [pb_utils.Tensor(name, np.array([[0]], np.int32)) for name in nothing]
        request = pb_utils.InferenceRequest(
            model_name=self._model.model,
            request_id=call,
            requested_output_names=[],
            inputs=[*inputs, pb_utils.Tensor("stop", np.array([[True]]))],
        )
        for _ in responses(request):
            pass


class Step:
    """A model, and the names under which its tensors come and go."""

    def __init__(self, model, input_map, output_map):
        self.model = model
        self._inputs = input_map
        self._outputs = output_map

    def request(self, tensors, call, kept_back=(), without=()):
        """The call of the model with those of its inputs that are there."""
        return pb_utils.InferenceRequest(
            model_name=self.model,
            request_id=call,
            requested_output_names=[
                key for key, name in self._outputs.items() if name not in without
            ],
            inputs=[
                renamed(tensors[name], key)
                for key, name in self._inputs.items()
                if name in tensors and key not in kept_back
            ],
        )

    def read(self, response):
        """The response's tensors. Raises RuntimeError where it is an error."""
        if response.has_error():
            raise RuntimeError(response.error().message())
        return {self._outputs[tensor.name()]: tensor for tensor in response.output_tensors()}

    def input(self, tensors, key):
        """The one of the tensors that is the model's input ``key``."""
        return tensors[self._inputs[key]]

    def copies(self, tensors):
        """The outputs that hand an input on, of what came."""
        return {
            shown: tensors[self._inputs[key]]
            for out, shown in self._outputs.items()
            if (key := out.removeprefix("OUT_")) in self._inputs and self._inputs[key] in tensors
        }

    def chunk(self, tokens):
        """Postprocessing's inputs for tokens of one sequence, [1, 1, length]."""
        values = {"TOKENS_BATCH": tokens, "SEQUENCE_LENGTH": np.array([[tokens.size]], np.int32)}
        return {self._inputs[key]: pb_utils.Tensor(key, value) for key, value in values.items()}


class Accumulated:
    """The tokens of a stream so far, for postprocessing."""

    def __init__(self, tensors, postprocessing):
        self._end_id = _value(tensors, "_PREPROCESSOR_END_ID", -1)
        self._most = _value(tensors, "_REQUEST_OUTPUT_LEN", 0)
        self._postprocessing = postprocessing
        self._tokens = {}  # by sequence, for num_return_sequences
        self._over = False

    def add(self, said):
        """What the model said, with all tokens so far in place of the new ones."""
        new = self._postprocessing.input(said, "TOKENS_BATCH").as_numpy()
        tokens = self._tokens.setdefault(_value(said, "sequence_index", 0), [])
        tokens += new.ravel().tolist()
        self._over = new.size == 0 or tokens[-1] == self._end_id or len(tokens) >= self._most
        return {**said, **self._postprocessing.chunk(np.array([[tokens]], np.int32))}

    def whole(self, outputs):
        """Postprocessing's outputs, without an unfinished character at the text's end."""
        if self._over:
            return outputs
        text = outputs["text_output"].as_numpy().ravel()[0].decode().rstrip(BROKEN)
        whole = np.array([text.encode()], np.object_)
        return {**outputs, "text_output": pb_utils.Tensor("text_output", whole)}


def renamed(tensor, name):
    """The tensor under another name."""
    try:
        return pb_utils.Tensor(name, tensor.as_numpy())
    except pb_utils.TritonModelException:  # numpy has no bfloat16, and no GPU
        return pb_utils.Tensor.from_dlpack(name, tensor.to_dlpack())


def _wanted(request):
    return set(request.requested_output_names())


def _value(tensors, name, default):
    return tensors[name].as_numpy().ravel()[0] if name in tensors else default


def _failure(error):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
