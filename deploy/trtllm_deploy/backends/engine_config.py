"""What an engine folder says of itself: its config.json, and how many rank*.engine lie beside it.

In: a folder that trtllm-build (0.8 or later) or one of our backends wrote. Out: a frozen value with
the fields that launching and preflight need. Knows nothing of a model repository.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_perf.errors import UserError
from trtllm_deploy.machine.json_files import read_json_object


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """One engine: ``build`` and ``pretrained`` as config.json has them, the rest read from them.

    ``world_size`` processes load it (the reference backend's is 1 for any ``tp``); ``ranks`` are
    the files rank<N>.engine that aren't empty, none where the engine is only a link to a checkpoint
    (``linked``).
    """

    version: str
    world_size: int
    tp: int
    pp: int
    ranks: int
    linked: bool
    build: Mapping[str, Any] = field(hash=False)
    pretrained: Mapping[str, Any] = field(hash=False)

    def limit(self, name: str) -> int | None:
        """A whole number of the build or plugin config, as ``max_batch_size``; None if not said."""
        value = self.build.get(name, self._plugins.get(name))
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def off(self, plugin: str) -> bool:
        """Whether the plugin config says that something is off; null is how it writes disable."""
        return plugin in self._plugins and self._plugins[plugin] in (None, False, "disable")

    def on(self, plugin: str) -> bool:
        """Whether it says that something is on."""
        return self._plugins.get(plugin) in (True, "enable")

    @property
    def paged(self) -> bool:
        """Whether the KV cache is paged, as far as the engine says (since 0.13: kv_cache_type)."""
        kind = self.build.get("kv_cache_type")
        return not self.off("paged_kv_cache") if kind is None else "PAGED" in str(kind).upper()

    @property
    def _plugins(self) -> Mapping[str, Any]:
        return _mapping(self.build.get("plugin_config"))

    @property
    def quantization(self) -> Mapping[str, Any]:
        """``quant_algo`` and ``kv_cache_quant_algo`` among others; empty where none is said."""
        return _mapping(self.pretrained.get("quantization"))


def read_engine(folder: Path) -> EngineConfig:
    """Read the engine in ``folder``.

    Raises UserError: config.json can't be read, is of a trtllm-build before 0.8, or lacks a field.
    """
    file = folder / "config.json"
    config = read_json_object(file)
    if "builder_config" in config:
        raise UserError(
            "is of a trtllm-build before 0.8 ('builder_config')",
            where=file,
            fix="build the engine again: engines load only in the version that built them",
        )
    linked = (folder / "checkpoint").is_symlink() or (folder / "checkpoint").is_dir()
    try:
        build, pretrained = dict(config["build_config"]), dict(config["pretrained_config"])
        mapping = dict(pretrained.get("mapping") or {})
        tp = int(mapping.get("tp_size") or build.get("tensor_parallel_size") or 1) or 1
        pp = int(mapping.get("pp_size") or build.get("pipeline_parallel_size") or 1) or 1
        processes = 1 if linked and mapping else int(mapping.get("world_size") or tp * pp)
        version = str(config["version"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"isn't an engine's config.json ({type(error).__name__}: {error})",
            where=file,
            fix="trtllm-build writes version, pretrained_config and build_config",
        ) from None
    ranks = sum(file.is_file() and file.stat().st_size > 0 for file in folder.glob("rank*.engine"))
    return EngineConfig(version, processes, tp, pp, ranks, linked, build, pretrained)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
