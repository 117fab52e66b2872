from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_perf.errors import UserError
from llm_perf.figures.accuracy import (
    SCORERS,
    check_scorer,
    choice,
    contains,
    exact,
    f1,
    number,
    regex,
    rouge_l,
    score_records,
)
from llm_perf.record import Record, Status
from llm_perf.workload.workload import Prompt

_words = st.lists(st.sampled_from(["red", "green", "blue", "up", "down", "四"]), max_size=12)


NUMBERS = itertools.count()  # each record is of another prompt


def record(
    answer: str, reference: str | None, category: str | None = None, status: Status = Status.OK
) -> Record:
    return Record(
        prompt=Prompt(next(NUMBERS), "p", 1, 9, reference=reference, category=category),
        request_id="r",
        status=status,
        error=None,
        scheduled_ns=0,
        sent_ns=1,
        end_ns=3,
        chunk_ns=(2, 3),
        answer=answer,
        server_tokens=1,
        tokenizer_tokens=1,
    )


def test_exact_looks_past_white_space_at_the_ends_only() -> None:
    assert exact(" one two\n", "one two") == 1
    assert exact("one  two", "one two") == exact("One two", "one two") == 0


def test_contains_looks_past_case_and_runs_of_space() -> None:
    assert contains("It is  STRASSE\nSeven.", "straße seven") == 1
    assert contains("It is six.", "seven") == 0


def test_regex_takes_the_reference_as_a_pattern() -> None:
    assert regex("so: 42 apples", r"\b4\d apples?") == 1
    assert regex("so: 52 apples", r"\b4\d apples?") == 0


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("5 and 6 make 11.", "steps...\n#### 11", 1),
        ("It costs $1,234.50", "1234.5", 1),
        ("-3", "3", 0),
        ("about .5", "0.50", 1),
        ("12 of 13", "12", 0),
        ("none", "0", 0),
        ("7", "seven", 0),
    ],
)
def test_number_compares_the_last_values(answer: str, reference: str, right: float) -> None:
    assert number(answer, reference) == right


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B. because A is wrong", "B"),
        ("A cat sat; so the answer is (C).", "C"),
        ("Answer: D", "D"),
        ("**C**", "C"),
        ("I first thought (A), but I choose (E)", "E"),
        ("so we get\nD.", "D"),
        ("The answer is B. No: the answer is C.", "C"),
        ("A cat sat", None),
        ("the answer is a dog", None),
        ("", None),
    ],
)
def test_choice_finds_the_letter(answer: str, letter: str | None) -> None:
    assert [each for each in "ABCDEFGHIJ" if choice(answer, each)] == ([letter] if letter else [])
    if letter:
        assert choice(answer, f"({letter.lower()})") == 1


def test_f1_is_squads() -> None:
    # 2 of 3 answered words are right, 2 of 2 wanted are there
    assert f1("The quick, brown fox!", "brown FOX") == pytest.approx(2 * (2 / 3) / (2 / 3 + 1))
    assert f1("a red red", "red") == pytest.approx(2 * 0.5 / 1.5)
    assert f1("四千七", "四千八") == pytest.approx(2 / 3)
    assert f1("", "") == 1 and f1("the", "") == 1 and f1("x", "") == 0


def test_rouge_l_is_lins() -> None:
    # Lin 2004, section 3.1: LCS of 3 and of 2 words of 4
    assert rouge_l("police kill the gunman", "police killed the gunman") == pytest.approx(3 / 4)
    assert rouge_l("the gunman kill police", "police killed the gunman") == pytest.approx(2 / 4)
    assert rouge_l("四千七百", "四百") == pytest.approx(2 * (2 / 4) / (2 / 4 + 1))
    assert rouge_l("", "x") == rouge_l("x", "") == 0


def lcs(one: list[str], other: list[str]) -> int:
    row = [0] * (len(other) + 1)
    for word in one:
        above = row[:]
        for at, each in enumerate(other, start=1):
            row[at] = above[at - 1] + 1 if word == each else max(above[at], row[at - 1])
    return row[-1]


@given(_words, _words)
def test_rouge_l_agrees_with_the_table_of_the_subsequence(one: list[str], other: list[str]) -> None:
    common = lcs(one, other)
    expected = 2 * common / (len(one) + len(other)) if common else 0
    assert rouge_l(" ".join(one), " ".join(other)) == pytest.approx(expected)


@given(st.text(), st.text(min_size=1))
def test_every_score_is_between_0_and_1(answer: str, reference: str) -> None:
    for name in SCORERS.keys() - {"regex"}:
        assert 0 <= SCORERS[name](answer, reference) <= 1


@given(_words.filter(bool))
def test_an_answer_that_is_its_reference_is_right(words: list[str]) -> None:
    text = " ".join(words)
    for scorer in (exact, contains, f1, rouge_l):
        assert scorer(text, text) == 1


def test_scores_count_answered_requests_that_have_a_reference() -> None:
    records = [
        record("a", "a", "x"),
        record("b", "a", "x"),
        record("c", "c", "y"),
        record("d", "d"),
        record("e", None),
        record("f", "f", "y", Status.CUT),
    ]
    score = score_records(records)
    assert score is not None
    assert (score.value, score.n) == (0.75, 4)
    assert score.values == (1, 0, 1, 1, None, None)
    assert {name: (part.value, part.n) for name, part in score.by_category.items()} == {
        "x": (0.5, 2),
        "y": (1, 1),
    }
    assert (score.low, score.high) == pytest.approx((0.3006, 0.9544), abs=1e-4)  # Wilson, 3 of 4
    assert score.to_json()["correct"] == 3


@pytest.mark.parametrize("scorer", ["exact", "f1"])
def test_repeats_of_a_prompt_do_not_narrow_the_interval_of_a_score(scorer: str) -> None:
    once = [record("a", "a" if i < 15 else "b") for i in range(20)]
    one, ten = score_records(once, scorer), score_records(once * 10, scorer)
    assert one is not None and ten is not None and ten.n == 200
    assert (ten.low, ten.high) == pytest.approx((one.low, one.high), abs=0.02)
    alone = score_records(once[:1] * 10, scorer)
    assert alone is not None and alone.low < 0.3


def test_graded_scores_have_a_bootstrap_interval() -> None:
    pairs = [("red", "red blue"), ("red", "red"), ("up", "down")] * 10
    records = [record(*pair) for pair in pairs]
    score = score_records(records, "f1")
    assert score is not None
    assert score.value == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert 0.3 < score.low < score.value < score.high < 0.8
    assert "correct" not in score.to_json()


def test_without_references_there_is_no_score() -> None:
    assert score_records([record("a", None)]) is None


def test_a_scorer_is_checked_before_the_run() -> None:
    right = Prompt(0, "p", 1, 9, reference=r"\d+")
    wrong = Prompt(7, "p", 1, 9, reference="(")
    check_scorer("regex", [right])
    check_scorer("f1", [wrong])
    with pytest.raises(UserError, match=r"reference of prompt 7 is no regular expression"):
        check_scorer("regex", [right, wrong])
    with pytest.raises(UserError, match=r"unknown score 'bleu'; use one of: exact"):
        check_scorer("bleu", [])
