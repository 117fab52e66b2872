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

So state is kept by request id (``detokenizer.py``). Preprocessing calls this model once before a
stream begins, with a negative SEQUENCE_LENGTH: the end token and minus the most tokens there can
be. Clients should send request ids that are unique among the requests under way; a stream without
one is right as well while no other such stream is open.
"""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from detokenizer import Detokenizer

_PASSED_ON = {
    "CUM_LOG_PROBS": "OUT_CUM_LOG_PROBS",
    "OUTPUT_LOG_PROBS": "OUT_OUTPUT_LOG_PROBS",
    "CONTEXT_LOGITS": "OUT_CONTEXT_LOGITS",
    "GENERATION_LOGITS": "OUT_GENERATION_LOGITS",
}


def load_tokenizer(folder, skip_special_tokens):
    """The folder's decode, ids to text, and its encode, text to ids without special tokens."""
    if not Path(folder).is_dir():  # transformers would take it for a name and ask the network
        raise FileNotFoundError(f"there is no tokenizer_dir {folder}")
    if (Path(folder) / "tokenizer.json").exists():
        import tokenizers

        fast = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        return (
            lambda ids: fast.decode(ids, skip_special_tokens=skip_special_tokens),
            lambda text: fast.encode(text, add_special_tokens=False).ids,
        )
    import transformers

    slow = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return (
        lambda ids: slow.decode(
            ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        ),
        lambda text: slow.encode(text, add_special_tokens=False),
    )


class TritonPythonModel:
    """The python backend's interface."""

    def initialize(self, args):
        """Load the tokenizer that tokenizer_dir names."""
        parameters = json.loads(args["model_config"])["parameters"]
        skip = parameters.get("skip_special_tokens", {"string_value": "true"})["string_value"]
        folder = parameters["tokenizer_dir"]["string_value"]
        self._decode, encode = load_tokenizer(folder, skip == "true")
        self._detokenizer = Detokenizer(self._decode, encode("a"))

    def execute(self, requests):
        """Detokenize, in the order in which the responses come."""
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        try:
            inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            texts = self._texts(request.request_id(), inputs)
            outputs = [pb_utils.Tensor("OUTPUT", np.array(texts, dtype=np.object_))]
            outputs += [
                pb_utils.Tensor(_PASSED_ON[name], value)
                for name, value in inputs.items()
                if name in _PASSED_ON
            ]
            return pb_utils.InferenceResponse(outputs)
        except Exception as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))

    def _texts(self, request_id, inputs):
        """One text per beam, UTF-8. TOKENS_BATCH is [batch, beam, longest]."""
        batch, lengths = inputs["TOKENS_BATCH"], inputs["SEQUENCE_LENGTH"].ravel()
        rows = batch.reshape(len(lengths), -1)
        if len(lengths) == 1:
            if lengths[0] < 0:
                self._detokenizer.open(request_id, int(rows[0, 0]), -int(lengths[0]))
                return [b""]
            return [self._detokenizer.add(request_id, rows[0, : lengths[0]].tolist()).encode()]
        pairs = zip(rows, lengths)  # noqa: B905 (no strict in Python 3.9)
        return [self._decode(row[:length].tolist()).encode() for row, length in pairs]
