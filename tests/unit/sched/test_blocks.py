"""Block accounting."""

from __future__ import annotations

import pytest

from paddle_ds.sched import BlockPool
from paddle_ds.sched.blocks import extend_digests


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


def known(pool: BlockPool, *digests: bytes) -> list[int]:
    """Blocks that were filled, made known and given back."""
    blocks = pool.allocate(len(digests))
    for block, digest in zip(blocks, digests, strict=True):
        pool.remember(block, digest)
    pool.free(blocks)
    return blocks


def test_the_longest_known_beginning_is_found() -> None:
    pool = BlockPool(5, 16)
    first, second = known(pool, b"1", b"2")
    known(pool, b"4")
    assert pool.find([b"1", b"2", b"3", b"4"]) == [first, second]
    assert pool.find([b"2"]) == [second]
    assert pool.find([b"0", b"1"]) == []


def test_a_known_block_is_free_until_it_is_shared() -> None:
    pool = BlockPool(3, 16)
    blocks = known(pool, b"1", b"2")
    assert (pool.num_free_blocks, pool.num_unused(blocks)) == (3, 2)
    pool.share(blocks)
    assert (pool.num_free_blocks, pool.num_unused(blocks)) == (1, 0)


def test_a_shared_block_is_free_after_its_last_user() -> None:
    pool = BlockPool(2, 16)
    blocks = known(pool, b"1")
    pool.share(blocks)
    pool.share(blocks)
    pool.free(blocks)
    assert pool.num_free_blocks == 1
    pool.free(blocks)
    assert pool.num_free_blocks == 2
    with pytest.raises(AssertionError, match="freed twice"):
        pool.free(blocks)


def test_unknown_blocks_are_taken_before_known_ones() -> None:
    pool = BlockPool(4, 16)
    kept = known(pool, b"1", b"2")
    used = pool.allocate(2)
    pool.free(used)
    assert sorted(pool.allocate(2)) == sorted(used)
    assert pool.find([b"1", b"2"]) == kept


def test_the_longest_unused_is_forgotten_first_and_an_end_before_its_beginning() -> None:
    pool = BlockPool(4, 16)
    known(pool, b"old-1", b"old-2")
    known(pool, b"new-1", b"new-2")
    forgotten = []
    for _ in range(4):
        pool.allocate(1)
        forgotten += [d for d in (b"old-1", b"old-2", b"new-1", b"new-2") if not pool.find([d]) and d not in forgotten]
    assert forgotten == [b"old-2", b"old-1", b"new-2", b"new-1"]


def test_sharing_makes_a_block_recent() -> None:
    pool = BlockPool(2, 16)
    first, _ = known(pool, b"1"), known(pool, b"2")
    pool.share(first)
    pool.free(first)
    pool.allocate(1)
    assert (pool.find([b"1"]), pool.find([b"2"])) == (first, [])


def test_a_block_that_is_taken_for_something_else_is_forgotten() -> None:
    pool = BlockPool(1, 16)
    known(pool, b"1")
    (block,) = pool.allocate(1)
    assert pool.find([b"1"]) == []
    pool.remember(block, b"2")
    assert (pool.find([b"2"]), pool.num_known_blocks) == ([block], 1)


def test_of_equal_blocks_the_first_is_shared() -> None:
    pool = BlockPool(2, 16)
    first, second = pool.allocate(2)
    pool.remember(first, b"1")
    pool.remember(second, b"1")
    assert (pool.find([b"1"]), pool.num_known_blocks) == ([first], 1)


def test_everything_can_be_forgotten_at_once() -> None:
    pool = BlockPool(3, 16)
    known(pool, b"1", b"2")
    pool.forget_all()
    assert (pool.find([b"1"]), pool.num_known_blocks, pool.num_free_blocks) == ([], 0, 3)


def digests_of(ids: list[int], num_blocks: int, block_tokens: int = 2) -> list[bytes]:
    digests: list[bytes] = []
    extend_digests(digests, ids, num_blocks, block_tokens)
    return digests


def test_equal_beginnings_have_equal_digests_and_no_others() -> None:
    ids = [1, 2, 3, 4, 5, 6]
    assert digests_of(ids, 2) == digests_of(ids, 3)[:2] == digests_of([1, 2, 3, 4, 9, 9], 2)
    assert digests_of([9, 2, 3, 4], 2)[1] != digests_of([1, 2, 3, 4], 2)[1]
    assert len({*digests_of([1, 1, 1, 1], 2), *digests_of([256, 1], 1), *digests_of([1, 256], 1)}) == 4


def test_digests_are_extended_and_never_redone() -> None:
    digests = digests_of([1, 2, 3, 4], 1)
    before = list(digests)
    extend_digests(digests, [1, 2, 3, 4], 2, 2)
    assert digests == digests_of([1, 2, 3, 4], 2)
    assert digests[:1] == before
    extend_digests(digests, [1, 2, 3, 4], 1, 2)
    assert len(digests) == 2
