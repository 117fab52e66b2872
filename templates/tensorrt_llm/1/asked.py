"""What a Triton request asks of the reference backend, tensor by tensor.

In: the inputs of one prompt, as numpy arrays of batch size 1. Out: the engine's request. An input
that asks for what this backend cannot do is an error of that request; none is silently ignored.
"""

import torch

from trtllm_deploy.reference.generation import Request
from trtllm_deploy.reference.sampling import Choice

_CHOICE = {  # input, and what sampling.py calls it
    "runtime_top_k": "top_k",
    "runtime_top_p": "top_p",
    "random_seed": "seed",
    "min_length": "min_tokens",
    **{name: name for name in ("temperature", "seed", "min_tokens", "end_id")},
    **{f"{name}_penalty": f"{name}_penalty" for name in ("repetition", "presence", "frequency")},
}
_HONOURED = {
    *("input_ids", "input_lengths", "request_output_len", "streaming", "stop"),
    *("stop_words_list", "bad_words_list", "embedding_bias", "exclude_input_in_output"),
    *("return_perf_metrics", "return_num_input_tokens", "return_num_output_tokens"),
    *_CHOICE,
    # without effect on a decoder-only model, with one beam, in a batch without padding:
    *("pad_id", "decoder_input_ids", "decoder_input_lengths"),
    *("len_penalty", "early_stopping", "beam_search_diversity_rate"),
}
_ONLY = {  # the one value that this backend can do
    "beam_width": 1,
    "num_return_sequences": 1,
    "return_log_probs": 0,
    "return_context_logits": 0,
    "return_generation_logits": 0,
}


def read_request(inputs):
    """The engine's request. Raises ValueError for what it cannot do."""
    for name, tensor in inputs.items():
        if name in _HONOURED or tensor.size == 0:
            continue
        if name not in _ONLY:
            raise ValueError(f"the reference backend does not support {name}")
        if tensor.ravel()[0] != _ONLY[name]:
            refused = f"does not support {name} {tensor.ravel()[0]}, only {_ONLY[name]}"
            raise ValueError(f"the reference backend {refused}")
    bias = inputs.get("embedding_bias")
    biased = bias is not None and bias.any()
    return Request(
        input_ids=tuple(prompt_ids(inputs).tolist()),
        max_new_tokens=int(value(inputs, "request_output_len", 0)),
        end_id=int(value(inputs, "end_id", -1)),
        streaming=bool(value(inputs, "streaming", False)),
        stop_words=_words(inputs.get("stop_words_list")),
        choice=Choice(
            **{_CHOICE[name]: value(inputs, name, 0).item() for name in inputs if name in _CHOICE},
            bad_words=_words(inputs.get("bad_words_list")),
            embedding_bias=torch.from_numpy(bias.ravel().copy()) if biased else None,
        ),
        wants_metrics=bool(value(inputs, "return_perf_metrics", False)),
    )


def value(inputs, name, default):
    """The first element of an input."""
    return inputs[name].ravel()[0] if name in inputs else default


def prompt_ids(inputs):
    """The prompt without what pads it to the longest of its batch. Raises ValueError."""
    ids, length = inputs["input_ids"].ravel(), inputs["input_lengths"].ravel()[0]
    if not 0 <= length <= ids.size:
        raise ValueError(f"input_lengths is {length}, but input_ids has {ids.size} tokens")
    return ids[:length]


def _words(lists):
    """Words of a TensorRT-LLM word list [1, 2, longest]: ids, then where each word ends or -1."""
    if lists is None or lists.size == 0:
        return ()
    ids, ends = lists.reshape(2, -1).tolist()
    starts = [0, *ends]
    return tuple(
        tuple(ids[start:end]) for start, end in zip(starts, ends, strict=False) if end > start >= 0
    )
