"""What a plan does otherwise than its file says, or can't know: sentences for people.

Pure: the file, its cells and the models' configs go in. Nothing here stops a build.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trtllm_deploy.backends.backend import BACKENDS
from trtllm_deploy.plan.plan import Facts
from trtllm_deploy.plan.shape import trained_length
from trtllm_deploy.spec.deployment_file import Cell, DeploymentFile
from trtllm_deploy.spec.overrides import shown


def notes(file: DeploymentFile, cells: Sequence[Cell], facts: Facts) -> list[str]:
    """Each sentence once, with the first cell that it is about."""
    told: dict[object, str] = {}
    for cell in cells:
        found = (*_clipped(file, cell), *_long(cell, facts), *_windows(file, cell, facts))
        backend = BACKENDS[cell.backend]
        found += tuple(
            ((cell.backend, each), each) for each in backend.notes(facts.file_for(cell, file), cell)
        )
        found += tuple(_pools(file, cell, facts))
        for kind, text in found:
            told.setdefault(kind, f"{cell.name}: {text}")
    unknown = [
        f"{model}: config.json isn't known, so it isn't judged before its download: {why}"
        for model, why in facts.unjudged.items()
    ]
    changed = [
        f"{cell.name}: set to {', '.join(shown(own))}, in place of the file's"
        for cell in cells
        if (own := facts.overrides.get(cell.name))
    ]
    return [*told.values(), *changed, *unknown]


def _clipped(file: DeploymentFile, cell: Cell) -> Iterator[tuple[object, str]]:
    """Only where the file asks for it: the release's default is more in many a cell."""
    asked, tokens = file.given_flags(cell).get("max_num_tokens"), file.step_tokens(cell)
    if asked is not None and tokens is not None and tokens < asked:
        text = (
            f"max_num_tokens {asked} is clipped to {tokens}, max_seq_len x max_batch_size, as"
            " trtllm-build does"
        )
        yield ("clipped", asked, tokens), text


def _pools(file: DeploymentFile, cell: Cell, facts: Facts) -> Iterator[tuple[object, str]]:
    pool = facts.changed(cell, file).get("max_tokens_in_paged_kv_cache")
    if pool is not None and BACKENDS[cell.backend].sizes_pool_otherwise:
        text = f"its KV cache is given {pool} tokens, as many as TensorRT-LLM's would have here"
        yield ("pool", cell.backend, cell.model, pool), text


def _long(cell: Cell, facts: Facts) -> Iterator[tuple[object, str]]:
    trained = trained_length(facts.configs.get(cell.model, {}))
    longest = cell.isl + cell.osl
    if trained is not None and longest > trained:
        text = f"ISL + OSL {longest} is more than max_position_embeddings {trained} of {cell.model}"
        yield ("long", cell.model, longest), f"{text}: answers get worse beyond it"


def _windows(file: DeploymentFile, cell: Cell, facts: Facts) -> Iterator[tuple[object, str]]:
    changed = facts.changed(cell, file)
    own = facts.overrides.get(cell.name, {})
    name = "max_attention_window_size"
    if name in changed and name not in own:
        sizes = ", ".join(str(each) for each in dict.fromkeys(changed[name]))
        yield ("window", cell.model, sizes), f"{name} {sizes}, the model's sliding window"
