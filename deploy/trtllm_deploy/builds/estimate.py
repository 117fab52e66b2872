"""How long stages will take, from how long such stages took: manifests of earlier builds.

Pure: manifests and stages go in, seconds come out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from trtllm_deploy.plan.plan import Stage

UNKNOWN_S = {
    **dict.fromkeys(("fetch", "checkpoint", "engine", "measure"), 300.0),
    "repository": 0.1,
}
"""What to plan with where nothing like it was made before."""

_ALIKE = ("backend", "precision", "model", "tp", "pp", "build")
"""What stages have in common, the most telling first."""


def about(stage: Stage) -> Mapping[str, Any]:
    """What a manifest keeps of a stage for later estimates, and for people."""
    cell = stage.cell
    shape = {"max_batch_size": cell.max_batch_size, "isl": cell.isl, "osl": cell.osl}
    return {
        "title": stage.title,
        "backend": stage.made_from.get("backend"),
        "precision": cell.precision if stage.kind != "fetch" else None,
        "model": cell.model,
        "tp": cell.tp,
        "pp": cell.pp,
        "build": shape if stage.kind == "engine" else None,
    }


def estimate(stages: Iterable[Stage], manifests: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds by key: the median of the stages of the same kind that are most alike.

    A stage is left out where nothing of its kind was made before.
    """
    took: defaultdict[tuple[Any, ...], list[float]] = defaultdict(list)
    for manifest in manifests:
        for likeness in _likenesses(manifest["stage"], manifest.get("about", {})):
            took[likeness].append(manifest["seconds"])
    expected = {}
    for stage in stages:
        known = (took[each] for each in _likenesses(stage.kind, about(stage)) if each in took)
        if alike := next(known, None):
            expected[stage.key] = median(alike)
    return expected


def _likenesses(kind: str, about: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """From all in common down to the kind and the backend."""
    values = [str(about.get(name)) for name in _ALIKE]
    return [(kind, *values[:count]) for count in range(len(values), 0, -1)]
