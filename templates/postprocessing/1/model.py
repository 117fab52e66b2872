"""Token ids in, text out: the ensemble's last step, on any Triton with the python backend.

Needs ``tokenizers`` where the tokenizer has a tokenizer.json, else ``transformers``.

In a stream each response of tensorrt_llm runs this model once, with the new tokens alone, so a
character or a space may be split between two runs. What Triton (seen: 2.51) gives to mend that:

- No tensor of preprocessing, nor of the request, can be wired to this model: Triton refuses an
  ensemble step whose inputs come from both sides of a decoupled model ("receives inputs originated
  from different decoupled models").
- The request id of the ensemble's request is the request id here, for every response of a stream.
  It is empty when the client sends none; nothing else tells two streams apart.
- With one instance of this model the responses of a stream run, and arrive, in order; with more
  they do not. Hence exactly one instance when streaming.

So state is kept by request id (``detokenizer.py``, which says what a chunk costs). Preprocessing
calls this model once before the streams of a request begin: SEQUENCE_LENGTH is for each minus the
most tokens there can be, TOKENS_BATCH the words that end it, as in TensorRT-LLM's word lists.
Clients should send request ids that are unique among the requests under way; a stream without one
is right as well while no other such stream is open. Nothing tells the sequences of one request
(num_return_sequences) apart: preprocessing refuses to stream several.

Of a cancelled stream Triton tells this model alone, by the requests that follow; so this model says
``stop`` to tensorrt_llm, ours or the C++ one; the empty chunk that ends it frees the state here.
With ``dynamic_batching`` Triton would refuse these requests itself, and the ensemble never ends
(seen: 2.51); hence none in this model's config. Without a request id nothing can be stopped.

What was not announced is a whole answer: of a request that does not stream, or of a BLS model that
sends all tokens so far.
"""

import json
from functools import partial

import numpy as np
import triton_python_backend_utils as pb_utils
from detokenizer import Detokenizer
from spent import responses
from tokenizer import Tokenizer

_CANCELLATION_CHECK = 8  # tokens between two looks, which take about 40 µs each
_PASSED_ON = {  # and what to say where tensorrt_llm says nothing
    "OUT_TOKENS_BATCH": np.zeros((1, 1, 0), np.int32),
    "OUT_SEQUENCE_LENGTH": np.zeros((1, 1), np.int32),
    "OUT_CUM_LOG_PROBS": np.zeros((1, 1), np.float32),
    "OUT_OUTPUT_LOG_PROBS": np.zeros((1, 1, 1), np.float32),
    "OUT_CONTEXT_LOGITS": np.zeros((1, 1, 1), np.float32),
    "OUT_GENERATION_LOGITS": np.zeros((1, 1, 1, 1), np.float32),
}


class TritonPythonModel:
    """The python backend's interface."""

    def initialize(self, args):
        """Load the tokenizer that tokenizer_dir names."""
        parameters = json.loads(args["model_config"])["parameters"]
        skip = parameters.get("skip_special_tokens", {"string_value": "true"})["string_value"]
        folder = parameters["tokenizer_dir"]["string_value"]
        tokenizer = Tokenizer(folder)
        self._decode = partial(tokenizer.decode, skip=skip == "true")
        self._detokenizer = Detokenizer(self._decode, tokenizer.encode("a", False))

    def execute(self, requests):
        """Detokenize, in the order in which the responses come."""
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        try:
            inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            request_id = request.request_id()
            texts = self._texts(request_id, inputs)
            left = (request_id and self._detokenizer.left(request_id)) or 1
            if left % _CANCELLATION_CHECK == 0 and request.is_cancelled():
                _stop(request_id)
            outputs = [pb_utils.Tensor("OUTPUT", np.array(texts, dtype=np.object_))]
            for name in request.requested_output_names():
                if name in _PASSED_ON:  # some clients read what is declared, sent or not
                    value = inputs.get(name.removeprefix("OUT_"), _PASSED_ON[name])
                    outputs.append(pb_utils.Tensor(name, value))
            return pb_utils.InferenceResponse(outputs)
        except Exception as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))

    def _texts(self, request_id, inputs):
        """One text per beam, UTF-8. TOKENS_BATCH is [batch, beam, longest]."""
        batch, lengths = inputs["TOKENS_BATCH"], inputs["SEQUENCE_LENGTH"].ravel().tolist()
        if lengths[0] < 0:
            for word_list, length in zip(batch, lengths, strict=True):
                self._detokenizer.open(request_id, _words(*word_list.tolist()), -length)
            return [b""] * len(lengths)
        rows = batch.reshape(len(lengths), -1)
        pairs = zip(rows, lengths, strict=True)
        answers = [row[:length].tolist() for row, length in pairs]
        if len(answers) == 1:
            return [self._detokenizer.add(request_id, answers[0]).encode()]
        return [self._decode(tokens).encode() for tokens in answers]


def _words(ids, ends):
    """The words of a list: ids one after another, and where each word ends, padded with -1."""
    return [ids[begin:end] for begin, end in zip([0, *ends], ends, strict=False) if end > begin]


def _stop(request_id):
    """End what tensorrt_llm does for a stream whose client has gone; its last chunk comes here."""
    one = np.ones((1, 1), np.int32)
    inputs = {"input_ids": one, "input_lengths": one, "request_output_len": one, "stop": one > 0}
    request = pb_utils.InferenceRequest(
        model_name="tensorrt_llm",
        request_id=request_id,
        requested_output_names=["output_ids", "sequence_length"],
        inputs=[pb_utils.Tensor(name, value) for name, value in inputs.items()],
    )
    for _ in responses(request):
        pass
