"""The engine's chunks in, Triton responses out.

The prompts of one Triton request share a response sender; each has an ``Answer`` of its own.
"""

import threading

import numpy as np
import triton_python_backend_utils as pb_utils
from asked import prompt_ids, value

# Zeros of these shapes are sent where they are asked for and there is nothing to say, as
# TensorRT-LLM's backend does up to v0.13: perf_analyzer asks for every output, reads stray memory
# for one that stays away, and a stray NaN ends its JSON.
_PLACEHOLDERS = {
    "cum_log_probs": (1, 1),
    "output_log_probs": (1, 1, 1),
    "context_logits": (1, 1, 1),
    "generation_logits": (1, 1, 1, 1),
    "acceptance_rate": (1, 1),
}
_NUMPY = {"TYPE_FP32": np.float32, "TYPE_FP16": np.float16, "TYPE_INT64": np.int64}


class Responses:
    """The responses of one Triton request, the last of them marked as such."""

    def __init__(self, request, prompts):
        self.id = request.request_id()
        self.wanted = request.requested_output_names()
        self._sender = request.get_response_sender()
        self._open = prompts
        self._lock = threading.Lock()

    def send(self, response, last_of=0):
        """Send a response, the last one of so many prompts."""
        with self._lock:
            self._open -= last_of
            last = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
            self._sender.send(response, flags=0 if self._open else last)

    def is_cancelled(self):
        """Whether whoever sent the request has lost interest."""
        with self._lock:
            return self._open > 0 and self._sender.is_cancelled()


class Answer:
    """Turns the engine's chunks for one prompt into responses.

    ``kinds`` are the types of the model's outputs; ``row`` is the prompt's place in a batch.
    """

    def __init__(self, responses, inputs, row, kinds, excludes_input):
        self.handle = None
        self.responses = responses
        self.over = False
        self._inputs = inputs
        self._row = row
        self._kinds = kinds
        self._streaming = bool(value(inputs, "streaming", False))
        excludes = bool(value(inputs, "exclude_input_in_output", excludes_input))
        self._with_prompt = not (self._streaming or excludes)
        self._lock = threading.Lock()

    def on_chunk(self, chunk):
        """Send the chunk on; called from the engine's thread."""
        if chunk.error is not None:
            self.fail(chunk.error)
        else:
            self._send(pb_utils.InferenceResponse(self._tensors(chunk)), chunk.final)

    def fail(self, *error):
        """End the answer with a TritonError of this message, and code."""
        self._send(pb_utils.InferenceResponse(error=pb_utils.TritonError(*error)), True)

    def _send(self, response, final):
        with self._lock:  # the engine's last chunk and a cancellation may come together
            if not self.over:
                self.over = final
                self.responses.send(response, last_of=int(final))

    def _tensors(self, chunk):
        prompt, ids = prompt_ids(self._inputs), np.array(chunk.tokens, np.int32)
        shown = np.concatenate([prompt, ids]) if self._with_prompt else ids
        arrays = {"output_ids": shown.reshape(1, 1, -1), "sequence_length": [[len(shown)]]}
        # num_output_tokens counts the prompt where output_ids has it, as in TensorRT-LLM
        for name, count in (("num_input_tokens", prompt), ("num_output_tokens", shown)):
            if value(self._inputs, f"return_{name}", False):
                arrays[name] = [[len(count)]]
        if self._row is not None:
            arrays["batch_index"] = [[self._row]]
        for name in self.responses.wanted & _PLACEHOLDERS.keys():
            arrays[name] = np.zeros(_PLACEHOLDERS[name])
        arrays |= {name: [[number]] for name, number in chunk.metrics.items()}
        return [
            pb_utils.Tensor(name, np.asarray(array, _NUMPY.get(self._kinds[name], np.int32)))
            for name, array in arrays.items()
            if name in self.responses.wanted
        ]
