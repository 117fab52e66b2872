"""What child processes find in their environment: what they need, and nothing that is a secret.

The names stand in environment.yaml. A model's code runs in a server, and whoever finds a hole in it
finds its environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from types import MappingProxyType

from trtllm_deploy.machine.data import load_data

_NOTHING: Mapping[str, str] = MappingProxyType({})


def clean_environment(
    more: Mapping[str, str] = _NOTHING, of: Mapping[str, str] | None = None
) -> dict[str, str]:
    """This process's environment (or ``of``), cut down to what a child may have, and ``more``."""
    given = os.environ if of is None else of
    return {**{name: value for name, value in given.items() if _may_have(name)}, **more}


def is_secret(name: str) -> bool:
    """Whether a variable's name is a secret's, in any usual spelling: GITHUB_PAT, MY_APIKEY."""
    known = load_data("machine/environment.yaml")
    if name in known["no_secrets"]:
        return False
    words = re.split(r"[^A-Z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper())
    joined = "".join(words)
    return bool(set(words) & set(known["secrets"])) or any(
        each in joined for each in known["joined"]
    )


def _may_have(name: str) -> bool:
    known = load_data("machine/environment.yaml")
    wanted = name in known["names"] or name.startswith(tuple(known["prefixes"]))
    return wanted and not is_secret(name)
