"""Text in, token ids out: the ensemble's first step, on any Triton with the python backend.

Needs ``tokenizers`` where the tokenizer has a tokenizer.json, else ``transformers``; for chat
templates also ``jinja2``. Of a request that streams it tells postprocessing beforehand how it can
end (see there): Triton lets no tensor of this model reach postprocessing, because a decoupled model
lies between them.
"""

import json
from itertools import chain
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from chat import chat_template
from tokenizer import Tokenizer

_SUPPORTED = {
    *("QUERY", "DECODER_QUERY", "REQUEST_OUTPUT_LEN", "BAD_WORDS_DICT", "STOP_WORDS_DICT"),
    *("EMBEDDING_BIAS_WORDS", "EMBEDDING_BIAS_WEIGHTS", "END_ID", "PAD_ID", "MIN_TOKENS"),
    *("MIN_LENGTH", "PROMPT_TABLE_EXTRA_ID", "STREAMING", "NUM_RETURN_SEQUENCES"),
    "EXCLUDE_INPUT_IN_OUTPUT",
}
_ONE = np.ones((1, 1), np.int32)
_NO_LIMIT = 2**31


class TritonPythonModel:
    """The python backend's interface."""

    def initialize(self, args):
        """Load the tokenizer that tokenizer_dir names."""
        parameters = json.loads(args["model_config"])["parameters"]
        self._parameters = {key: value["string_value"] for key, value in parameters.items()}
        self._tokenizer = Tokenizer(self._parameters["tokenizer_dir"])
        self._special = self._parameters.get("add_special_tokens", "true") == "true"
        limits = _limits(self._parameters.get("gpt_model_path"))
        self._max_input_len = limits.get("max_input_len", _NO_LIMIT)
        self._max_seq_len = limits.get("max_seq_len", _NO_LIMIT)
        self._excludes_input = self._parameters.get("exclude_input_in_output", "false") == "true"
        self._prompt_of = str
        if self._parameters.get("apply_chat_template") == "true":  # it has the special tokens
            self._prompt_of = chat_template(self._tokenizer.folder, self._tokenizer.config)
            self._special = False

    def execute(self, requests):
        """Tokenize; a request that is wrong gets an error of its own."""
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        try:
            inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            outputs = self._outputs(inputs, request.request_id())
            return pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, value) for name, value in outputs.items()]
            )
        except Exception as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))

    def _outputs(self, inputs, request_id):
        self._check(inputs)
        batch = len(inputs["QUERY"])
        ends = inputs.get("END_ID", np.full((batch, 1), (self._tokenizer.end_ids or [-1])[0]))
        pads = inputs.get("PAD_ID", np.full((batch, 1), self._tokenizer.pad_id))
        pad = int(pads.ravel()[0])
        prompts = [self._ids(row, "text_input", self._prompt_of) for row in inputs["QUERY"]]
        decoder = [self._ids(row, "decoder_text_input") for row in inputs.get("DECODER_QUERY", [])]
        decoder = decoder or [[pad]] * batch
        stops = self._words(inputs, "STOP_WORDS_DICT", batch)
        if "END_ID" not in inputs:  # TensorRT-LLM takes one; the model's others end it as words do
            stops = [[*words, *([each] for each in self._tokenizer.end_ids[1:])] for words in stops]
        outputs = {
            "INPUT_ID": _padded(prompts, pad),
            "REQUEST_INPUT_LEN": _lengths(prompts),
            "DECODER_INPUT_ID": _padded(decoder, pad),
            "REQUEST_DECODER_INPUT_LEN": _lengths(decoder),
            "REQUEST_OUTPUT_LEN": inputs["REQUEST_OUTPUT_LEN"],
            "BAD_WORDS_IDS": _word_lists(self._words(inputs, "BAD_WORDS_DICT", batch, exact=True)),
            "STOP_WORDS_IDS": _word_lists(stops),
            "EMBEDDING_BIAS": self._bias(inputs, batch),
            "OUT_END_ID": ends.astype(np.int32),
            "OUT_PAD_ID": pads.astype(np.int32),
        }
        for name in ("MIN_LENGTH", "MIN_TOKENS"):  # with both, the release's own
            if name in inputs:
                outputs["OUT_MIN_TOKENS"] = inputs[name]
        if "PROMPT_TABLE_EXTRA_ID" in inputs:
            extra = inputs["PROMPT_TABLE_EXTRA_ID"].reshape(batch, 1)
            ids = np.zeros(outputs["INPUT_ID"].shape, np.uint64)
            virtual = outputs["INPUT_ID"] >= self._tokenizer.vocabulary
            outputs["OUT_PROMPT_TABLE_EXTRA_IDS"] = np.where(virtual, extra, ids)
        if _flag(inputs, "STREAMING", False):
            all_ends = [[*words, [end]] for words, end in zip(stops, ends[:, 0], strict=True)]
            lengths = outputs["REQUEST_INPUT_LEN"]
            most = np.minimum(inputs["REQUEST_OUTPUT_LEN"][:, :1], self._max_seq_len - lengths)
            begins = (lengths <= self._max_input_len).ravel() & (most > 0).ravel()
            if begins.any():  # the others are refused by tensorrt_llm
                self._announce(request_id, _word_lists(all_ends)[begins], most[begins])
        return outputs

    def _check(self, inputs):
        """Refuse what neither this model nor this release can do."""
        unsupported = sorted(set(inputs) - _SUPPORTED)
        if unsupported:
            raise ValueError(f"preprocessing does not support {', '.join(unsupported)}")
        if inputs["REQUEST_OUTPUT_LEN"].size == 0 or inputs["REQUEST_OUTPUT_LEN"].min() < 1:
            raise ValueError("max_tokens must be at least 1")
        if _flag(inputs, "STREAMING", False) and inputs.get("NUM_RETURN_SEQUENCES", _ONE).max() > 1:
            raise ValueError("num_return_sequences is 1 in a stream: send a request for each")
        excludes = _flag(inputs, "EXCLUDE_INPUT_IN_OUTPUT", self._excludes_input)
        if excludes != self._excludes_input and not _flag(inputs, "STREAMING", False):
            raise ValueError(
                "this release cannot set exclude_input_in_output per request; set"
                f" triton.exclude_input_in_output: {str(excludes).lower()} in the deployment file"
            )

    def _ids(self, row, name, prompt_of=str):
        """The tokens of a prompt, at least one. Raises ValueError."""
        if row.size != 1:
            raise ValueError(f"{name} has {row.size} texts in a row of the batch, not one")
        ids = self._tokenizer.encode(prompt_of(_text(row.item(), name)), self._special)
        if not ids:
            raise ValueError(f"{name} is empty")
        return ids

    def _words(self, inputs, name, batch, exact=False):
        """The spellings of the words that each prompt comes with."""
        return [
            [ids for word in row for ids in self._tokenizer.spellings(_text(word, name), exact)]
            for row in inputs.get(name, np.empty((batch, 0))).reshape(batch, -1)
        ]

    def _bias(self, inputs, batch):
        """What to add to each token's logit, [batch, vocabulary]; [batch, 0] when nothing is."""
        none = np.empty((batch, 0), np.float32)
        words = inputs.get("EMBEDDING_BIAS_WORDS", none).reshape(batch, -1)
        weights = inputs.get("EMBEDDING_BIAS_WEIGHTS", none).reshape(batch, -1)
        if words.shape != weights.shape:
            raise ValueError("embedding_bias_words and embedding_bias_weights differ in number")
        if not words.size:
            return none
        bias = np.zeros((batch, self._tokenizer.vocabulary), np.float32)
        for row, *pairs in zip(bias, words, weights, strict=True):
            for word, weight in zip(*pairs, strict=True):
                row[self._tokenizer.encode(_text(word, "embedding_bias_words"), False)] += weight
        return bias

    def _announce(self, request_id, end_words, most_tokens):
        """Tell postprocessing that streams open: what ends each, its most tokens, negated."""
        answer = pb_utils.InferenceRequest(
            model_name="postprocessing",
            request_id=request_id,
            requested_output_names=["OUTPUT"],
            inputs=[
                pb_utils.Tensor("TOKENS_BATCH", end_words),
                pb_utils.Tensor("SEQUENCE_LENGTH", -most_tokens.astype(np.int32)),
            ],
        ).exec()
        if answer.has_error():
            raise RuntimeError(answer.error().message())


def _limits(engine):
    """What the engine folder was built for: where TensorRT-LLM ends an answer by itself."""
    file = Path(engine or "", "config.json")
    if not (engine and file.is_file()):
        return {}
    return json.loads(file.read_text(encoding="utf-8")).get("build_config", {})


def _text(value, name):
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8: {error}") from error


def _flag(inputs, name, default):
    return bool(inputs[name].ravel()[0]) if name in inputs else default


def _padded(rows, pad):
    longest = max(len(row) for row in rows)
    return np.array([row + [pad] * (longest - len(row)) for row in rows], np.int32)


def _lengths(rows):
    return np.array([[len(row)] for row in rows], np.int32)


def _word_lists(words):
    """TensorRT-LLM's word lists [batch, 2, longest]: ids one after another, then where each word
    ends; ids padded with 0, ends with -1."""
    lists = np.zeros((len(words), 2, max(sum(map(len, row)) for row in words)), np.int32)
    lists[:, 1] = -1
    for both, row in zip(lists, words, strict=True):
        ids = list(chain(*row))
        both[0, : len(ids)] = ids
        both[1, : len(row)] = np.cumsum([len(word) for word in row], dtype=np.int32)
    return lists
