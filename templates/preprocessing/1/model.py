"""Text in, token ids out: the ensemble's first step, on any Triton with the python backend.

Needs ``tokenizers`` where the tokenizer has a tokenizer.json, else ``transformers``. Of a request
that streams it tells postprocessing beforehand how it can end (see there): Triton lets no tensor
of this model reach postprocessing, because a decoupled model lies between them.
"""

import json
from itertools import chain
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

_SUPPORTED = {
    "QUERY",
    "DECODER_QUERY",
    "REQUEST_OUTPUT_LEN",
    "BAD_WORDS_DICT",
    "STOP_WORDS_DICT",
    "EMBEDDING_BIAS_WORDS",
    "EMBEDDING_BIAS_WEIGHTS",
    "END_ID",
    "PAD_ID",
    "PROMPT_TABLE_EXTRA_ID",
    "STREAMING",
    "EXCLUDE_INPUT_IN_OUTPUT",
}


class Tokenizer:
    """What a tokenizer folder says: text to ids, and the ids that end and pad an answer."""

    def __init__(self, folder):
        folder = Path(folder)
        if not folder.is_dir():  # transformers would take it for a name and ask the network
            raise FileNotFoundError(f"there is no tokenizer_dir {folder}")
        if (folder / "tokenizer.json").exists():
            import tokenizers

            fast = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            fast.no_truncation()
            fast.no_padding()
            self.encode = lambda text, special: fast.encode(text, add_special_tokens=special).ids
            self.vocabulary = fast.get_vocab_size()
            self._id_of = fast.token_to_id
        else:
            import transformers

            slow = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            self.encode = lambda text, special: slow.encode(text, add_special_tokens=special)
            self.vocabulary = len(slow)
            self._id_of = slow.convert_tokens_to_ids
        self.end_id = self._special(folder, "eos_token")
        pad_id = self._special(folder, "pad_token")
        self.pad_id = self.end_id if pad_id == -1 else pad_id

    def _special(self, folder, name):
        """The id of a special token: the tokenizer's, else the model's, else -1, none."""
        token = _read_json(folder / "tokenizer_config.json").get(name)
        token = token["content"] if isinstance(token, dict) else token
        found = self._id_of(token) if token else None
        if found is None:
            found = _read_json(folder / "generation_config.json").get(f"{name}_id")
        found = found[0] if isinstance(found, list) else found
        return -1 if found is None else found


class TritonPythonModel:
    """The python backend's interface."""

    def initialize(self, args):
        """Load the tokenizer that tokenizer_dir names."""
        parameters = json.loads(args["model_config"])["parameters"]
        self._parameters = {key: value["string_value"] for key, value in parameters.items()}
        self._tokenizer = Tokenizer(self._parameters["tokenizer_dir"])
        self._special = self._parameters.get("add_special_tokens", "true") == "true"
        self._excludes_input = self._parameters.get("exclude_input_in_output", "false") == "true"

    def execute(self, requests):
        """Tokenize; a request that is wrong gets an error of its own."""
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        try:
            inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            outputs = self._outputs(inputs)
            if _flag(inputs, "STREAMING", False):
                self._announce(request.request_id(), outputs)
            return pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, value) for name, value in outputs.items()]
            )
        except Exception as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))

    def _outputs(self, inputs):
        unsupported = sorted(set(inputs) - _SUPPORTED)
        if unsupported:
            raise ValueError(f"preprocessing does not support {', '.join(unsupported)}")
        excludes = _flag(inputs, "EXCLUDE_INPUT_IN_OUTPUT", self._excludes_input)
        if excludes != self._excludes_input and not _flag(inputs, "STREAMING", False):
            raise ValueError(
                "this release cannot set exclude_input_in_output per request; set"
                f" triton.exclude_input_in_output: {str(excludes).lower()} in the deployment file"
            )
        prompts = [self._encode(_text(row[0])) for row in inputs["QUERY"]]
        batch = len(prompts)
        ends, pads = self._tokenizer.end_id, self._tokenizer.pad_id
        end_ids = inputs.get("END_ID", np.full((batch, 1), ends, np.int32))
        pad_ids = inputs.get("PAD_ID", np.full((batch, 1), pads, np.int32))
        pad = int(pad_ids.ravel()[0])
        decoder = [self._encode(_text(row[0])) for row in inputs.get("DECODER_QUERY", [])]
        outputs = {
            "INPUT_ID": _padded(prompts, pad),
            "REQUEST_INPUT_LEN": _lengths(prompts),
            "DECODER_INPUT_ID": _padded(decoder or [[pad]] * batch, pad),
            "REQUEST_DECODER_INPUT_LEN": _lengths(decoder or [[pad]] * batch),
            "REQUEST_OUTPUT_LEN": inputs["REQUEST_OUTPUT_LEN"],
            "BAD_WORDS_IDS": self._word_lists(inputs.get("BAD_WORDS_DICT"), batch),
            "STOP_WORDS_IDS": self._word_lists(inputs.get("STOP_WORDS_DICT"), batch),
            "EMBEDDING_BIAS": self._bias(inputs, batch),
            "OUT_END_ID": end_ids.astype(np.int32),
            "OUT_PAD_ID": pad_ids.astype(np.int32),
        }
        if "PROMPT_TABLE_EXTRA_ID" in inputs:
            extra = inputs["PROMPT_TABLE_EXTRA_ID"].reshape(batch, 1)
            ids = np.zeros(outputs["INPUT_ID"].shape, np.uint64)
            virtual = outputs["INPUT_ID"] >= self._tokenizer.vocabulary
            outputs["OUT_PROMPT_TABLE_EXTRA_IDS"] = np.where(virtual, extra, ids)
        return outputs

    def _encode(self, text):
        return self._tokenizer.encode(text, self._special)

    def _word_lists(self, words, batch):
        """TensorRT-LLM's word lists [batch, 2, longest]: ids one after another, then where each
        word ends; ids padded with 0, ends with -1."""
        rows = []
        for index in range(batch if words is not None else 0):
            encoded = [self._tokenizer.encode(_text(word), False) for word in words[index].ravel()]
            encoded = [ids for ids in encoded if ids]
            rows.append((list(chain(*encoded)), np.cumsum([len(ids) for ids in encoded])))
        lists = np.zeros((batch, 2, max((len(ids) for ids, _ in rows), default=0)), np.int32)
        lists[:, 1] = -1
        for index, (ids, ends) in enumerate(rows):
            lists[index, 0, : len(ids)] = ids
            lists[index, 1, : len(ends)] = ends
        return lists

    def _bias(self, inputs, batch):
        """What to add to each token's logit, [batch, vocabulary]; [batch, 0] when nothing is."""
        words, weights = inputs.get("EMBEDDING_BIAS_WORDS"), inputs.get("EMBEDDING_BIAS_WEIGHTS")
        if words is None or weights is None:
            return np.empty((batch, 0), np.float32)
        bias = np.zeros((batch, self._tokenizer.vocabulary), np.float32)
        for index in range(batch):
            for word, weight in zip(words[index].ravel(), weights[index].ravel()):  # noqa: B905
                bias[index, self._tokenizer.encode(_text(word), False)] += weight
        return bias

    def _announce(self, request_id, outputs):
        """Tell postprocessing that a stream opens: its end token, its most tokens, negated."""
        end_id = outputs["OUT_END_ID"].ravel()[:1].reshape(1, 1, 1)
        most = outputs["REQUEST_OUTPUT_LEN"].ravel()[:1].reshape(1, 1)
        answer = pb_utils.InferenceRequest(
            model_name="postprocessing",
            request_id=request_id,
            requested_output_names=["OUTPUT"],
            inputs=[
                pb_utils.Tensor("TOKENS_BATCH", end_id.astype(np.int32)),
                pb_utils.Tensor("SEQUENCE_LENGTH", -most.astype(np.int32)),
            ],
        ).exec()
        if answer.has_error():
            raise RuntimeError(answer.error().message())


def _text(value):
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _flag(inputs, name, default):
    return bool(inputs[name].ravel()[0]) if name in inputs else default


def _padded(rows, pad):
    longest = max(len(row) for row in rows)
    return np.array([row + [pad] * (longest - len(row)) for row in rows], np.int32)


def _lengths(rows):
    return np.array([[len(row)] for row in rows], np.int32)


def _read_json(path):
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
