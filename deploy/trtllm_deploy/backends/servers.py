"""The kinds of servers, and which of them serves a folder.

A model repository, by whatever tool it was made, is Triton's. A folder of another kind says which
in ``server.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llm_perf.errors import UserError
from trtllm_deploy.backends.server import SAID, Kind
from trtllm_deploy.backends.triton.server import TRITON
from trtllm_deploy.backends.trtllm_serve.server import TRTLLM_SERVE
from trtllm_deploy.backends.vllm.server import VLLM
from trtllm_deploy.machine.json_files import read_json_object

KINDS: Mapping[str, Kind] = {each.name: each for each in (TRITON, VLLM, TRTLLM_SERVE)}


def kind_of(folder: Path) -> Kind:
    """The kind that serves a folder. Raises UserError: it says one that there is none of."""
    if not (folder / SAID).is_file():
        return TRITON
    name = str(read_json_object(folder / SAID).get("server"))
    if name not in KINDS:
        raise UserError(
            f"there is no server {name!r}",
            where=folder / SAID,
            fix=f"build the cell again; there are {', '.join(KINDS)}",
        )
    return KINDS[name]


def is_served(folder: Path) -> bool:
    """Whether a folder is one that some server serves."""
    return (folder / SAID).is_file() or any(folder.glob("*/config.pbtxt"))
