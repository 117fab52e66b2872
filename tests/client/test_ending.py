"""Ctrl-C, SIGTERM and SIGHUP wherever they find a command: it ends, and nothing swallows them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
import weakref
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from llm_perf import ending
from llm_perf.background import child
from llm_perf.ending import ENDING, end_like_ctrl_c, unheard_by_children
from llm_perf.load.arrivals import plan
from llm_perf.load.load import Concurrency, Conditions, Extent
from llm_perf.load.offer import offer
from llm_perf.load.runner import Job
from llm_perf.loop import run_loop
from llm_perf.transports import Endpoint, http2
from llm_perf.workload.workload import Prompt
from tests.client.scripted import ScriptedTriton, answer


@pytest.fixture(autouse=True)
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hear signals as a command does."""
    before = {each: signal.getsignal(each) for each in ENDING}
    monkeypatch.setattr(ending, "_came", False)
    end_like_ctrl_c()
    heard = {each: signal.getsignal(each) for each in ENDING}
    yield
    after = {each: signal.getsignal(each) for each in ENDING}
    for each, handler in before.items():
        signal.signal(each, handler)
    assert after == heard, "a block left its handlers behind"


class Reader(asyncio.Protocol):
    """Is found by a signal while it reads."""

    def __init__(self, ending: signal.Signals) -> None:
        self.ending = ending

    def data_received(self, data: bytes) -> None:
        signal.raise_signal(self.ending)


@pytest.mark.parametrize("each", ENDING)
@pytest.mark.parametrize("fast", [True, False], ids=["uvloop", "asyncio"])
def test_a_signal_in_a_callback_ends_the_loop_in_order(
    each: signal.Signals, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fast:
        pytest.importorskip("uvloop")
    else:
        monkeypatch.setitem(sys.modules, "uvloop", None)
    errors: list[object] = []
    cleaned = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: errors.append(context))
        ours, theirs = socket.socketpair()
        await loop.create_connection(lambda: Reader(each), sock=ours)
        with theirs:
            theirs.send(b"x")
            try:
                await asyncio.sleep(20)
            finally:
                await asyncio.sleep(0)  # as what closes connections does
                cleaned.append(True)

    with pytest.raises(KeyboardInterrupt):
        run_loop(main())
    assert (cleaned, errors) == ([True], [])


def test_a_signal_while_the_loop_closes_is_raised_too() -> None:
    async def late() -> None:
        try:
            await asyncio.sleep(20)
        finally:
            signal.raise_signal(signal.SIGTERM)

    async def main() -> None:
        main.task = asyncio.create_task(late())  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    with pytest.raises(KeyboardInterrupt):
        run_loop(main())


@pytest.mark.parametrize("interruptible", [False, True])
@pytest.mark.parametrize("times", [1, 2])
def test_a_load_that_a_signal_finds_reading_is_not_measured_on(
    interruptible: bool, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, count = http2.Connection.data_received, 0

    def data_received(connection: http2.Connection, data: bytes) -> None:
        nonlocal count
        count += 1
        for _ in range(times if count == 5 else 0):
            signal.raise_signal(signal.SIGTERM)
        read(connection, data)

    monkeypatch.setattr(http2.Connection, "data_received", data_received)
    prompts = tuple(Prompt(i, f"p{i} ", 1, 2) for i in range(200))
    with ScriptedTriton(answer) as server:
        place = Endpoint(server.url, "grpc", "ensemble")
        conditions = Conditions(interruptible=interruptible)
        job = Job(place, prompts, plan(Concurrency(2), Extent(), len(prompts)), conditions)
        if interruptible and times == 1:  # the first ends the load in order
            assert offer(job, {}).stopped == "interrupted"
        else:
            with pytest.raises(KeyboardInterrupt):
                offer(job, {})
    assert len(server.asked) < len(prompts)


def test_a_signal_that_a_finalizer_swallows_is_raised_by_the_next_loop() -> None:
    class File:
        pass

    begun = []

    async def main() -> None:
        begun.append(True)

    file = File()
    weakref.finalize(file, signal.raise_signal, signal.SIGTERM)
    del file
    with pytest.raises(KeyboardInterrupt):
        run_loop(main())
    assert not begun


def test_what_is_ignored_from_the_start_stays_so() -> None:
    heard = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    end_like_ctrl_c()
    try:
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        run_loop(asyncio.sleep(0))
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, heard)


def _told(pipe: Connection) -> None:
    pipe.send([signal.getsignal(each) for each in ENDING])


class Begins:
    """Is read in a process before anything of ours runs there, and has it interrupted."""

    def __reduce__(self) -> tuple[object, ...]:
        return _interrupted, (os.getpid(),)


def _interrupted(of: int) -> None:
    if os.getpid() != of:
        for each in ENDING:
            signal.raise_signal(each)


def _begin(_: object, pipe: Connection) -> None:
    _told(pipe)


def test_a_process_that_begins_is_ended_by_us_alone() -> None:
    with child(_begin, Begins()) as pipe:
        assert pipe.recv() == [signal.SIG_IGN] * len(ENDING)


def test_a_signal_waits_while_a_process_begins() -> None:
    went_on = False
    with pytest.raises(KeyboardInterrupt):
        with unheard_by_children(ENDING):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            went_on = True
        pytest.fail("the signal was lost")
    assert went_on
