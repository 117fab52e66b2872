from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtllm_deploy.study.alternation import orders, stays
from trtllm_deploy.study.room import gpus_apart


def test_two_are_measured_a_b_b_a() -> None:
    assert list(orders(2, 4)) == [(0, 1), (1, 0), (0, 1), (1, 0)]


@pytest.mark.parametrize("targets", range(2, 8))
def test_each_stands_at_each_place_and_follows_each_other_equally_often(targets: int) -> None:
    square = list(orders(targets, targets * (1 + targets % 2)))
    places = Counter((place, each) for order in square for place, each in enumerate(order))
    follows = Counter(pair for order in square for pair in pairwise(order))
    assert len({*places.values()}) == 1 and len(places) == targets**2
    assert len({*follows.values()}) == 1 and len(follows) == targets * (targets - 1)


@given(st.integers(1, 6), st.integers(1, 20))
def test_stays_hold_every_block_of_everybody_once(targets: int, blocks: int) -> None:
    seen = Counter((target, block) for target, part in stays(targets, blocks) for block in part)
    assert seen == Counter((each, block) for each in range(targets) for block in range(blocks))


def test_servers_share_no_gpu() -> None:
    assert gpus_apart([2, 0, 1], ["0", "1", "2"]) == [("0", "1"), (), ("2",)]
    assert gpus_apart([2, 2], ["0", "1", "2"]) is None
    assert gpus_apart([0, 0], []) == [(), ()]
