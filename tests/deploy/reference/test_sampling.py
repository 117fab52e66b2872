"""A choice against TensorRT-LLM's formulas, written out once more in plain Python."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trtllm_deploy.reference.sampling import Choice, Trace

VOCABULARY = 12


@pytest.mark.parametrize(
    "choice",
    [
        Choice(top_k=1, temperature=9.0),
        Choice(temperature=0.0, top_k=5),
        Choice(seed=4, temperature=2),
    ],
)
def test_one_candidate_is_greedy(choice: Choice) -> None:
    logits = torch.randn(50)
    assert choice.greedy
    assert torch.equal(choice.apply(logits, 0), logits)


def test_top_k_and_top_p_bound_what_can_be_taken() -> None:
    logits = torch.tensor([0.6, 0.3, 0.08, 0.02]).log()
    for choice, allowed in (
        (Choice(top_k=2), {0, 1}),
        (Choice(top_p=0.85), {0, 1}),
        (Choice(top_p=0.5), {0}),
        (Choice(top_p=0.95), {0, 1, 2}),
        (Choice(top_k=3, top_p=0.95), {0, 1, 2}),
    ):
        taken = {int(choice.apply(logits, step).argmax()) for step in range(200)}
        assert taken == allowed


def penalised(logits: list[float], seen: list[int], choice: Choice) -> list[float]:
    """batchApplyPenalty of cpp/tensorrt_llm/kernels/penaltyKernels.cu, for one row."""
    rows = []
    for token, logit in enumerate(logits):
        logit /= choice.temperature
        times = seen.count(token)
        if times > 0:
            factor = choice.repetition_penalty
            logit = logit * factor if logit < 0 else logit / factor
            logit -= choice.presence_penalty
            logit -= choice.frequency_penalty * times
        rows.append(logit)
    return rows


tokens = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30)
numbers = st.floats(-5, 5, width=32)


@given(
    st.lists(numbers, min_size=VOCABULARY, max_size=VOCABULARY),
    tokens,
    st.floats(0.125, 4, width=32),
    st.floats(0.125, 4, width=32),
    numbers,
    numbers,
)
def test_penalties_are_tensorrt_llm_s(
    logits: list[float],
    seen: list[int],
    temperature: float,
    repetition: float,
    presence: float,
    frequency: float,
) -> None:
    choice = Choice(
        temperature=temperature,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
    )
    given_logits = torch.tensor(logits)
    shaped = choice.apply(given_logits, 0, seen)
    expected = torch.tensor(logits if choice.plain else penalised(logits, seen, choice))
    torch.testing.assert_close(shaped, expected, rtol=1e-4, atol=1e-4)
    assert given_logits.tolist() == torch.tensor(logits).tolist()  # its own row is left alone


def test_a_bad_word_is_barred_where_it_would_become_whole() -> None:
    logits = torch.zeros(VOCABULARY)
    choice = Choice(bad_words=((3,), (1, 2, 4), (9, 5)))
    for seen, barred in (
        ([7], {3}),
        ([0, 1, 2], {3, 4}),
        ([2], {3}),
        ([1, 2, 9], {3, 5}),
        ([], {3}),
    ):
        shaped = choice.apply(logits, 1, seen)
        assert {i for i, logit in enumerate(shaped.tolist()) if logit == -math.inf} == barred


def test_a_bias_is_added_before_the_temperature_and_may_be_shorter_than_the_vocabulary() -> None:
    logits, bias = torch.arange(4.0), torch.tensor([8.0, 0.0])
    shaped = Choice(temperature=2.0, embedding_bias=bias).apply(logits, 0)
    assert shaped.tolist() == [4.0, 0.5, 1.0, 1.5]
    assert Choice(embedding_bias=torch.zeros(2)).apply(logits, 0).tolist() == logits.tolist()


def test_an_end_token_that_is_not_in_the_vocabulary_bars_nothing() -> None:
    logits = torch.zeros(VOCABULARY)
    assert Choice(min_tokens=5, end_id=VOCABULARY).apply(logits, 0).tolist() == logits.tolist()


def test_penalties_also_weigh_on_what_is_sampled() -> None:
    logits = torch.zeros(VOCABULARY)
    choice = Choice(top_k=VOCABULARY, frequency_penalty=50.0)
    seen = [token for token in range(VOCABULARY) if token != 6]
    assert {int(choice.apply(logits, step, seen).argmax()) for step in range(50)} == {6}


@pytest.mark.parametrize(
    ("name", "number", "reason"),
    [
        ("temperature", -1.0, "at least 0"),
        ("top_k", -1, "at least 0"),
        ("top_p", 1.5, "at most 1"),
        ("min_tokens", -1, "at least 0"),
        ("repetition_penalty", 0.0, "more than 0"),
        ("repetition_penalty", math.nan, "more than 0"),
        ("temperature", math.nan, "at least 0 and finite"),
        ("presence_penalty", math.inf, "finite"),
        ("frequency_penalty", math.nan, "finite"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(name: str, number: float, reason: str) -> None:
    settings: dict[str, float] = {name: number}
    with pytest.raises(ValueError, match=f"{name} must be {reason}.*, not"):
        Choice(**settings)  # type: ignore[arg-type]


finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
positive = st.floats(0, exclude_min=True, allow_infinity=False, width=32)


@given(
    choice=st.builds(
        Choice,
        temperature=positive,
        top_k=st.integers(0, 2**31 - 1),
        top_p=st.floats(0.125, 1, width=32),
        repetition_penalty=positive,
        presence_penalty=finite,
        frequency_penalty=finite,
        embedding_bias=st.lists(st.floats(width=32), max_size=VOCABULARY).map(torch.tensor),
        bad_words=st.sampled_from([(), tuple((token,) for token in range(VOCABULARY))]),
    ),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_no_setting_however_odd_breaks_the_batch_that_it_is_in(
    choice: Choice, dtype: torch.dtype
) -> None:
    logits = torch.linspace(-9, 9, VOCABULARY, dtype=dtype)
    assert 0 <= int(choice.apply(logits, 1, [1, 2, 2]).argmax()) < VOCABULARY


def test_a_trace_stays_one_object_when_its_request_is_copied() -> None:
    trace = Trace(Choice(), 3)
    assert copy.deepcopy({"trace": trace})["trace"] is trace
