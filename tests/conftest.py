from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.processes import MARK, left_behind, until

# Where a shell starts the tests in the background SIGINT is ignored, and SIGHUP by nohup, and so
# they would be in every process that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

settings.register_profile("shared machine", deadline=None)  # no test is about time
settings.load_profile("shared machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first, so that no worker is left with one at the end."""
    items.sort(key=lambda item: "e2e" not in item.path.parts)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """A test that leaves a process makes another fail, and not always."""
    os.environ[MARK] = str(os.getpid())
    yield
    assert until(lambda: not left_behind()), left_behind()
