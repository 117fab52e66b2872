"""Our scheduler against NVIDIA's in Python, iteration by iteration, on random requests.

TensorRT-LLM has it beside the C++ one from 1.3 on (TLLM_USE_PYTHON_SCHEDULER); its blocks are
counted here as ours are.
"""

from __future__ import annotations

import enum
import importlib.util
import sys
import types
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from tests.deploy.reference.test_scheduling import asked, budgets
from trtllm_deploy.reference import simulation
from trtllm_deploy.reference.scheduling import Budget, Job, Shares, share_out
from trtllm_deploy.reference.simulation import Asked, simulate

SCHEDULER = Path("tensorrt_llm/_torch/pyexecutor/scheduler.py")
State = enum.Enum(
    "State",
    {"ENCODER_INIT": 1, "DISAGG_GENERATION_INIT": 8, "CONTEXT_INIT": 10,
     "GENERATION_IN_PROGRESS": 13, "GENERATION_TO_COMPLETE": 14, "GENERATION_COMPLETE": 20},
)  # fmt: skip
Policies = enum.Enum("Policies", ["GUARANTEED_NO_EVICT", "MAX_UTILIZATION", "STATIC_BATCH"])


class Texts(str, enum.Enum):
    pass


def _module(name: str, **names: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(names)
    return module


@cache
def theirs(file: Path) -> Any:
    """NVIDIA's module, without the C++ bindings that it doesn't call for this."""
    quiet = types.SimpleNamespace(debug=lambda *_: None)
    found = {
        "strenum": _module("strenum", StrEnum=Texts),
        "tensorrt_llm": _module("tensorrt_llm"),
        "tensorrt_llm.bindings": _module("tensorrt_llm.bindings", internal=None),
        "tensorrt_llm.llmapi": _module("tensorrt_llm.llmapi"),
        "tensorrt_llm.llmapi.llm_args": _module("a", CapacitySchedulerPolicy=Policies),
        "tensorrt_llm.logger": _module("b", logger=quiet),
        "pyexecutor": _module("pyexecutor", __path__=[]),
        "pyexecutor.llm_request": _module("c", LlmRequest=Their, LlmRequestState=State),
    }
    found["tensorrt_llm.bindings"].internal = types.SimpleNamespace(
        batch_manager=types.SimpleNamespace(PeftCacheManager=object, KVCacheManager=object)
    )
    before = {name: sys.modules.get(name) for name in found}
    sys.modules.update(found)
    try:
        spec = importlib.util.spec_from_file_location("pyexecutor.scheduler", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        for name, old in before.items():
            if old is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = old
    return module


class Their:
    """A job of ours, as their scheduler sees requests."""

    is_encoder_init_state = is_disagg_generation_init_state = has_draft_tokens = False
    num_draft_tokens, lora_task_id = 0, None

    def __init__(self, job: Job) -> None:
        self.job = job
        self.request_id = self.py_request_id = int(job.name)
        self.is_context_init_state = not job.generating
        self.is_generation_in_progress_state = job.generating
        state = State.GENERATION_IN_PROGRESS if job.generating else State.CONTEXT_INIT
        self.state, self.state_value = state, state.value
        self.is_first_context_chunk = job.read == 0
        self.context_remaining_length = job.prompt - job.read
        self.context_chunk_size = self.context_remaining_length

    @property
    def is_last_context_chunk(self) -> bool:
        return self.context_chunk_size == self.context_remaining_length

    def get_num_tokens(self, _beam: int) -> int:
        return self.job.prompt

    def get_beam_width_by_iter(self, for_next_iteration: bool) -> int:
        return 1 + for_next_iteration * 0


class Blocks:
    """A KV cache manager that counts as ours does."""

    is_variable_window = True
    max_attention_window_vec = (0,)

    def __init__(self, jobs: Sequence[Job], budget: Budget, kept: int) -> None:
        self._budget = budget
        self._free = (budget.blocks or 10**9) - kept - sum(job.held for job in jobs)

    def get_kv_cache_stats(self) -> Any:
        return types.SimpleNamespace(num_free_blocks_per_window_size={0: self._free})

    def get_remaining_blocks_to_completion(self, request: Their, _window: int) -> int:
        return self._budget.most_blocks(request.job) - request.job.held

    def start_scheduling(self) -> None:
        self._freed: dict[int, int] = {}
        self._held = {}

    def get_needed_blocks_one_step(self, request: Their, _two: bool, _window: int) -> int:
        job = request.job
        if job.held and not job.generating:
            return 0
        tokens = job.prompt + job.made + 1
        return max(0, self._budget.blocks_of(tokens) - job.held)

    def scheduling_has_free_blocks(self, blocks: int, _window: int) -> bool:
        return blocks <= self._free

    def scheduling_remove_sequence(self, number: int) -> None:
        self._free += self.held[number]


def decided(module: Any, jobs: Sequence[Job], budget: Budget, lingering: int, kept: int) -> Any:
    """Their decision, as (context, generation, paused) by name."""
    requests = [Their(job) for job in jobs]
    blocks = Blocks(jobs, budget, kept)
    blocks.held = {int(job.name): job.held for job in jobs}
    capacity = module.PyCapacityScheduler(
        budget.max_batch_size - lingering, blocks, None, Policies[budget.policy.upper()]
    )
    capacity._prefill_contributed_blocks = lambda _requests: (set(), set())
    fitting, _, paused = capacity.schedule_request(requests)
    first_come = module.ChunkingPolicy.FIRST_COME_FIRST_SERVED
    chunks = module.ContextChunkingConfig(first_come, budget.tokens_per_block)
    micro = module.PyMicroBatchScheduler(
        budget.max_batch_size, budget.max_num_tokens, chunks if budget.chunked else None
    )
    context, generation = micro.schedule(fitting, set())
    size = (lambda r: r.context_chunk_size) if budget.chunked else (lambda r: r.job.prompt)
    return (
        {each.job.name: size(each) for each in context},
        {each.job.name for each in generation},
        {each.job.name for each in paused},
    )


@pytest.mark.parametrize("overlap", [False, True])
def test_every_iteration_is_theirs(tree: Path, overlap: bool) -> None:
    file = tree / SCHEDULER
    if not file.exists() or "class PyCapacityScheduler" not in file.read_text():
        pytest.skip("this release's scheduler is in C++ only")
    module = theirs(file)
    seen = 0

    @settings(max_examples=400, deadline=None, database=None)
    @given(requests=asked, budget=budgets)
    def follow(requests: Sequence[Asked], budget: Budget) -> None:
        def both(jobs: Sequence[Job], budget: Budget, lingering: int, kept: int) -> Shares:
            nonlocal seen
            ours = share_out(jobs, budget, lingering, kept)
            shares = {job.name: share for job, share in ours.context}
            generation = {job.name for job in ours.generation}
            paused = {job.name for job in ours.paused}
            assert (shares, generation, paused) == decided(module, jobs, budget, lingering, kept)
            seen += 1
            return ours

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(simulation, "share_out", both)
            for _ in simulate(requests, budget, overlap=overlap):
                pass

    follow()
    print(f"{seen} iterations of {tree.parent.name}")
    assert seen > 1000
