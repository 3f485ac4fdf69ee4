"""Block accounting."""

from __future__ import annotations

import pytest

from paddle_ds.sched import BlockPool


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (15, 1), (16, 1), (17, 2), (33, 3)])
def test_a_begun_block_counts_whole(num_tokens: int, num_blocks: int) -> None:
    assert BlockPool(8, 16).blocks_for(num_tokens) == num_blocks


def test_blocks_are_handed_out_once() -> None:
    pool = BlockPool(5, 16)
    taken = pool.allocate(2) + pool.allocate(3)
    assert sorted(taken) == [0, 1, 2, 3, 4]
    assert pool.num_free_blocks == 0


def test_freed_blocks_can_be_taken_again() -> None:
    pool = BlockPool(2, 16)
    pool.free(pool.allocate(2))
    assert sorted(pool.allocate(2)) == [0, 1]


def test_taking_none_takes_none() -> None:
    pool = BlockPool(2, 16)
    assert pool.allocate(0) == []
    assert pool.num_free_blocks == 2


def test_taking_more_than_there_are_is_a_defect() -> None:
    with pytest.raises(AssertionError, match="num_free_blocks"):
        BlockPool(2, 16).allocate(3)


@pytest.mark.parametrize("again", [[1], [0, 0]], ids=["never taken", "twice"])
def test_freeing_what_is_free_is_a_defect(again: list[int]) -> None:
    pool = BlockPool(2, 16)
    assert pool.allocate(1) == [0]
    with pytest.raises(AssertionError, match="freed twice"):
        pool.free(again)
