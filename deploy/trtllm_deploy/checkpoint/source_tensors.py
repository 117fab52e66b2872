"""The tensors of a Hugging Face checkpoint, one layer at a time.

Comes in: a model folder, as downloaded or as modelopt exports it for the LLM API (fp8 there, and
full precision). Goes out: what ``LayerTensors`` promises. Holds no more than what was asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig

from llm_perf.errors import UserError
from trtllm_deploy.checkpoint.apart import split_rows
from trtllm_deploy.checkpoint.architectures import ARCHITECTURES
from trtllm_deploy.checkpoint.source_files import weight_files
from trtllm_deploy.checkpoint.tensors import InputRounding, KvRounding
from trtllm_deploy.checkpoint.trtllm_format import CONFIG
from trtllm_deploy.machine.json_files import read_json_object

_LAYER = "model.layers.{}."
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


class SourceTensors:
    """The :class:`~trtllm_deploy.checkpoint.tensors.LayerTensors` of a Hugging Face model folder.

    Raises UserError: the folder's config or weights don't read, or a tensor is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        quantized = read_json_object(folder / CONFIG).get("quantization_config") or {}
        self.algo: str | None = quantized.get("quant_algo") or quantized.get("quant_method")
        try:
            self.config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(f"the model's config doesn't load: {error}", where=folder) from None
        ours = ARCHITECTURES.get((self.config.architectures or [""])[0])
        self._renamed = ours.on_disk if ours else {}
        self._fused = ours.fused if ours else {}
        self._files: dict[str, Any] = {}
        for file in weight_files(folder):
            try:
                shard = safe_open(file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise UserError(f"can't be read: {error}", where=file) from None
            self._files |= dict.fromkeys(shard.keys(), shard)  # type: ignore[no-untyped-call]
        # transformers also loads what was saved from the model without its head
        self._prefix = "" if any(name.startswith("model.") for name in self._files) else "model."
        if self._prefix:
            self._files = {self._full(name): shard for name, shard in self._files.items()}

    def outer(self) -> dict[str, Tensor]:
        """Embedding, last norm and head; of two that are tied, either may be stored."""
        tied = self.config.tie_word_embeddings and _EMBEDDING not in self._files
        embedding = self._tensor(_HEAD if tied else _EMBEDDING).float()
        head = self._tensor(_HEAD).float() if _HEAD in self._files else embedding
        norm = self._tensor("model.norm.weight").float()
        return {_EMBEDDING: embedding, "model.norm.weight": norm, _HEAD: head}

    def layer(self, index: int) -> dict[str, Tensor]:
        """Weights of one layer, with the scale of those that have one."""
        prefix = _LAYER.format(index)
        names = [name for name in self._files if name.startswith(prefix)]
        weights: dict[str, Tensor] = {}
        for name in names:
            if name.endswith((".weight", ".bias")):
                weight = self._tensor(name).float()
                if f"{name}_scale" in self._files:
                    weight = weight * self._tensor(f"{name}_scale").float()
                weights |= self._parts(self._module(name.removeprefix(prefix)), weight)
        return weights

    def roundings(self, index: int) -> dict[str, InputRounding]:
        """The linears of one layer that round their input to e4m3."""
        prefix, suffix = _LAYER.format(index), ".input_scale"
        found: dict[str, InputRounding] = {}
        for name in self._files:
            if name.startswith(prefix) and name.endswith(suffix):
                module = self._module(name[len(prefix) : -len(suffix)])
                rounding = InputRounding("fp8", self._tensor(name).item(), None)
                found |= dict.fromkeys(self._fused.get(module, (module,)), rounding)
        return found

    def kv_rounding(self, index: int) -> KvRounding | None:
        """How one layer's keys and values are rounded, if they are."""
        attention = f"{_LAYER.format(index)}self_attn."
        scales = [f"{attention}{name}" for name in ("k_proj.k_scale", "v_proj.v_scale")]
        if not all(name in self._files for name in scales):
            return None
        k_scale, v_scale = (self._tensor(name).item() for name in scales)
        return KvRounding("fp8", k_scale, v_scale)

    def _parts(self, name: str, weight: Tensor) -> dict[str, Tensor]:
        module, _, kind = name.rpartition(".")
        parts = self._fused.get(module)
        if parts is None:
            return {name: weight}
        rows = split_rows(weight, len(parts), self.config)
        return {f"{part}.{kind}": each for part, each in zip(parts, rows, strict=True)}

    def _module(self, name: str) -> str:
        """The name that a layer's tensor has in transformers' model."""
        for theirs, ours in self._renamed.items():
            if name.startswith(theirs):
                return ours + name.removeprefix(theirs)
        return name

    def _tensor(self, name: str) -> Tensor:
        if name not in self._files:
            raise UserError(f"tensor '{name}' is missing", where=self._folder)
        stored = name.removeprefix(self._prefix) if name != _HEAD else name
        tensor: Tensor = self._files[name].get_tensor(stored)
        return tensor

    def _full(self, name: str) -> str:
        return name if name == _HEAD else f"{self._prefix}{name}"
