from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llm_perf.server.exposition import parse_metrics
from llm_perf.server.iterations import as_text
from llm_perf.server.occupancy import state_of

RECORD = {
    "iter": 7,
    "numQueuedRequests": 3,
    "kvCacheStats": {"freeNumBlocks": 90, "maxNumBlocks": 100},
    "inflightBatchingStats": {
        **{"numScheduledRequests": 8, "numContextRequests": 1, "numGenRequests": 7},
        "numCtxTokens": 512,
    },
}


def test_iterations_are_an_engines_state_by_their_means() -> None:
    idle: dict[str, Any] = {**RECORD, "numQueuedRequests": 1}
    values, types = parse_metrics(as_text(json.dumps([RECORD, idle]).encode()).decode())
    state = state_of(values)
    assert state == (8.0, 2.0, 1.0, 519.0, 90.0, 100.0)
    assert values["trtllm_iteration_seen", ()] == 2
    assert set(types.values()) == {"gauge"}


json_texts = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*RECORD]), inner),
)


@given(json_texts.map(json.dumps).map(str.encode) | st.binary(max_size=20))
def test_whatever_a_server_says_is_a_page(page: bytes) -> None:
    parse_metrics(as_text(page).decode())
