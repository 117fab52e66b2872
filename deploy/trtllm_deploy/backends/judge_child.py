"""Asks the TensorRT-LLM of this interpreter what it thinks of a command and of a checkpoint.

Run by :mod:`trtllm_deploy.backends.judge` as a script, with the Python that has tensorrt_llm; it
imports nothing of ours. Comes in: questions on stdin, each a line of JSON with ``command``
(trtllm-build's arguments) and ``checkpoint`` (a folder). Goes out: for each a line of JSON on
stdout behind ``ANSWER``.
Of the weights only names, types and shapes are looked at, so that 140 GB take seconds and no GPU.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ANSWER = "answer: "
_DTYPES = {
    **{"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "BOOL": "bool"},
    **{"I8": "int8", "U8": "uint8", "I16": "int16", "I32": "int32", "I64": "int64"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
}


class RefusedError(Exception):
    """TensorRT-LLM's own code doesn't take it."""


def main() -> None:
    """Answer; what the libraries print on the way goes between."""
    for line in sys.stdin:
        print(f"\n{ANSWER}{json.dumps(_answer(json.loads(line)))}", flush=True)


def _answer(question: Mapping[str, Any]) -> dict[str, Any]:
    if importlib.util.find_spec("tensorrt_llm") is None:
        return {"unasked": "this Python has no tensorrt_llm"}
    try:
        if question["command"]:
            _parse(question["command"])
        return {"counts": _load(Path(question["checkpoint"]))} if question["checkpoint"] else {}
    except RefusedError as error:
        return {"refused": str(error)}
    except Exception as error:
        return {"unasked": _told(error)}


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _parse(command: list[str]) -> None:
    """trtllm-build's own argument parser; up to 0.12 parse_arguments also parses."""
    from tensorrt_llm.commands import build

    said = io.StringIO()
    sys.argv = ["trtllm-build", *command]
    try:
        with contextlib.redirect_stderr(said):
            parser = build.parse_arguments()
            if hasattr(parser, "parse_args"):
                parser.parse_args()
    except SystemExit:
        last = (said.getvalue().strip().splitlines() or ["it ended"])[-1]
        raise RefusedError(last.split("error: ", 1)[-1]) from None


def _load(folder: Path) -> dict[str, int]:
    """Config, model class and weight loading of each rank, as trtllm-build does them."""
    from tensorrt_llm.models import MODEL_MAP, modeling_utils

    counts = {"parameters": 0, "missing": 0, "refused": 0, "unexpected": 0}
    config = _accepted(modeling_utils.PretrainedConfig.from_checkpoint, str(folder))
    if config.architecture not in MODEL_MAP:
        raise RefusedError(f"unsupported model architecture: {config.architecture}")
    _without_weights()
    seen = set()
    for rank in range(config.mapping.world_size):
        tensors = _header(folder / f"rank{rank}.safetensors")
        like = (rank // config.mapping.tp_size, json.dumps(tensors, sort_keys=True))
        if like in seen:  # the ranks of a pipeline stage are alike
            continue
        seen.add(like)
        own = modeling_utils.PretrainedConfig.from_checkpoint(str(folder))
        own.set_rank(rank)
        _load_rank(MODEL_MAP[config.architecture], modeling_utils, own, tensors, counts)
    return counts


def _load_rank(
    model_class: Any, utils: Any, config: Any, tensors: Mapping[str, Any], counts: dict[str, int]
) -> None:
    import torch

    weights = {
        name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for name, (dtype, shape) in tensors.items()
    }
    # up to 0.16 it changes what it is given, later it returns something new
    weights = _accepted(utils.preprocess_weights, weights, config) or weights
    model = _accepted(model_class, config)
    parameters = dict(model.named_parameters())
    wanted = {name for name, each in parameters.items() if not each.is_inited()}
    missing, unexpected = wanted - set(weights), set(weights) - set(parameters)
    counts["parameters"] += len(parameters)
    counts["unexpected"] += len(unexpected)
    # one number seen as a whole tensor: it goes where the real one would and takes no memory
    shown = {
        name: torch.ones(1, dtype=each.dtype).expand(each.shape) if each.is_meta else each
        for name, each in weights.items()
    }
    try:
        model.load(shown)
    except Exception as error:
        counts["missing"] += len(missing)
        counts["refused"] += 0 if missing else 1
        raise RefusedError(_told(error)) from error


def _accepted(function: Any, *given: Any) -> Any:
    """What TensorRT-LLM's function returns; its error is a refusal, unless it lacks a GPU."""
    try:
        return function(*given)
    except Exception as error:
        if isinstance(error, ImportError) or re.search("CUDA|NVIDIA|nvml", str(error)):
            raise
        raise RefusedError(_told(error)) from error


def _without_weights() -> None:
    """C++ operators that rearrange weights, replaced by what they do to a shape."""
    import torch

    def quantized(weight: Any, kind: Any) -> tuple[Any, Any]:
        *outer, rows, columns = weight.shape
        packed = columns // 2 if kind == torch.quint4x2 else columns
        return weight.new_empty([*outer, rows, packed], dtype=torch.int8), weight.new_empty(
            [*outer, columns]
        )

    operators: Any = torch.ops.trtllm
    operators.symmetric_quantize_last_axis_of_batched_matrix = quantized
    operators.preprocess_weights_for_mixed_gemm = lambda weight, *_: weight


def _header(file: Path) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of each tensor of a safetensors file."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return {
        name: (_DTYPES[each["dtype"]], each["shape"])
        for name, each in header.items()
        if name != "__metadata__"
    }


if __name__ == "__main__":
    main()
