"""Where stages run: the seam between the build and machines.

An executor is given stages one by one, each with the node and the number of GPUs that the schedule
chose, and reports what they say and how they end. It knows nothing of why a stage is started now,
or of what making it means: that is ``make``, one call that can be sent to another process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from llm_perf.errors import UserError
from trtllm_deploy.builds.critical_path import Node
from trtllm_deploy.plan.plan import Stage
from trtllm_deploy.store.store import StoreError

OnLine: TypeAlias = Callable[[str], None]
"""Told what a stage does; what ends in a newline is done, and stays on a screen without a table."""
Make: TypeAlias = Callable[[Stage, OnLine], bool]
"""Makes a stage's artifact; true if this call made it, false if it was there. Can be pickled."""


@dataclass(frozen=True, slots=True)
class Line:
    """A stage said something."""

    key: str
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A stage ended: ``made`` by this call or there before, or failed with an ``error``.

    ``hopeless``: every other stage would fail for the same reason.
    """

    key: str
    made: bool = False
    error: str | None = None
    hopeless: bool = False


Event: TypeAlias = Line | Ended


class Executor(Protocol):
    """Runs stages on the GPUs of its nodes; a context manager."""

    @property
    def nodes(self) -> Sequence[Node]:
        """The machines and what room they have."""

    def start(self, stage: Stage, node: Node, gpus: int) -> None:
        """Run the stage; it sees exactly ``gpus`` GPUs of the node."""

    def wait(self, seconds: float) -> list[Event]:
        """What happened since the last call; at most ``seconds`` pass until something does."""

    def __enter__(self) -> Executor:
        """Ready to start stages."""

    def __exit__(self, *_: object) -> None:
        """Stop what still runs, so that it cleans up after itself."""


def attempt(make: Make, stage: Stage, on_line: OnLine) -> Ended:
    """Run ``make``; what it raises becomes part of the event, for a build goes on without it."""
    try:
        return Ended(stage.key, made=make(stage, on_line))
    except UserError as error:
        return Ended(stage.key, error=str(error), hopeless=isinstance(error, StoreError))
    except Exception as error:
        return Ended(stage.key, error=f"{type(error).__name__}: {error}")
