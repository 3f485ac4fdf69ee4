"""What must hold between any two steps. Each check raises :class:`Violation` with what it found."""

from __future__ import annotations

import gc
import statistics
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import psutil

from paddle_ds.sched import BlockPool, Chunk, Request, Scheduler, Status
from paddle_ds.sched.blocks import extend_digests

_FIFTHS = 5


class Violation(Exception):
    """Something that must always hold does not."""


def require(holds: bool, message: str) -> None:
    """Raise :class:`Violation` unless ``holds``."""
    if not holds:
        raise Violation(message)


def blocks_in_use(pool: BlockPool) -> int:
    """Blocks with at least one user."""
    return sum(users > 0 for users in pool._num_users)


def check_blocks(scheduler: Scheduler) -> None:
    """Every block is free or has exactly the users that hold it, and what is remembered is remembered both ways."""
    pool = scheduler.pool
    held: Counter[int] = Counter()
    for request in scheduler.running:
        _check_running(request, pool)
        held.update(request.block_ids)
    for request in scheduler.waiting:
        name = request.request_id
        require(not request.block_ids, f"request {name} waits and holds blocks {request.block_ids}")
        require(request.status is Status.WAITING, f"request {name} waits with status {request.status.value}")
    require(all(0 <= block < pool.num_blocks for block in held), f"a block beyond the pool is held: {sorted(held)[-1:]}")
    for block, users in enumerate(pool._num_users):
        require(users == held[block], f"block {block} counts {users} users; {held[block]} requests hold it")
        free = block in pool._free
        require(free == (users == 0), f"block {block} has {users} users and is {'' if free else 'not '}among the free ones")
    require(len(pool._free) == pool.num_free_blocks <= pool.num_blocks, "the free list holds blocks that do not exist")
    known = {block: digest for digest, block in pool._block_of.items()}
    require(known == pool._digest_of, "the digests of known blocks and the blocks of known digests differ")
    require(pool.num_known_blocks == len(known), "two digests name one block")


def _check_running(request: Request, pool: BlockPool) -> None:
    name, blocks = request.request_id, request.block_ids
    require(request.status is Status.RUNNING, f"request {name} runs with status {request.status.value}")
    require(len(set(blocks)) == len(blocks), f"request {name} holds a block twice: {blocks}")
    low, high = pool.blocks_for(request.num_computed_tokens), pool.blocks_for(request.num_tokens)
    require(
        low <= len(blocks) <= high,
        f"request {name} holds {len(blocks)} blocks for {request.num_computed_tokens} computed of {request.num_tokens} tokens",
    )


def check_digests(scheduler: Scheduler) -> None:
    """A block that a running request holds is known, if at all, by the digest of the tokens that it stands for."""
    pool = scheduler.pool
    for request in scheduler.running:
        digests: list[bytes] = []
        full = request.num_computed_tokens // pool.block_tokens
        extend_digests(digests, request.token_ids, full, pool.block_tokens)
        for index, block in enumerate(request.block_ids):
            known = pool._digest_of.get(block)
            require(
                known is None or (index < full and known == digests[index]),
                f"block {block} of request {request.request_id} is known by the digest of other tokens",
            )


def check_nobody_lost(scheduler: Scheduler, live: Collection[str]) -> None:
    """What was accepted and has not ended is waiting or running, once."""
    queued = [request.request_id for request in (*scheduler.waiting, *scheduler.running)]
    require(len(set(queued)) == len(queued), "a request is queued twice")
    lost, stray = set(live) - set(queued), set(queued) - set(live)
    require(not lost, f"neither ended nor queued: {', '.join(sorted(lost))}")
    require(not stray, f"queued after their end: {', '.join(sorted(stray))}")
    known = {name for name in queued if scheduler.get(name) is not None}
    require(known == set(queued), f"queued but unknown by name: {', '.join(sorted(set(queued) - known))}")


@dataclass(frozen=True)
class ObjectCounts:
    """Live Python objects of the kinds that a leak would pile up."""

    requests: int
    chunks: int

    @classmethod
    def now(cls) -> ObjectCounts:
        gc.collect()
        kinds = Counter(type(each) for each in gc.get_objects() if isinstance(each, Request | Chunk))
        return cls(sum(n for kind, n in kinds.items() if issubclass(kind, Request)), kinds[Chunk])


def check_objects(baseline: ObjectCounts, num_live: int) -> ObjectCounts:
    """Between steps there are as many requests as are queued, and no chunks. Returns what there is beyond ``baseline``."""
    now = ObjectCounts.now()
    beyond = ObjectCounts(now.requests - baseline.requests, now.chunks - baseline.chunks)
    require(beyond.requests <= num_live, f"{beyond.requests} Request objects for {num_live} requests: some outlive their end")
    require(beyond.chunks <= 0, f"{beyond.chunks} Chunk objects outlive their step")
    return beyond


class ResidentMemory:
    """Resident bytes over the run, and whether they go on growing after the warm-up."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._samples: list[int] = []

    def sample(self) -> None:
        self._samples.append(int(self._process.memory_info().rss))

    @property
    def start_bytes(self) -> int:
        return self._samples[0] if self._samples else 0

    @property
    def second_fifth_bytes(self) -> int:
        """Median over the second fifth: caches and buffers have their size by then."""
        return _median(self._samples[len(self._samples) // _FIFTHS : 2 * len(self._samples) // _FIFTHS])

    @property
    def last_fifth_bytes(self) -> int:
        return _median(self._samples[(_FIFTHS - 1) * len(self._samples) // _FIFTHS :])

    def check(self, max_growth_bytes: int) -> None:
        growth = self.last_fifth_bytes - self.second_fifth_bytes
        require(
            growth <= max_growth_bytes,
            f"resident memory grew by {growth / 1e6:.1f} MB from the second to the last fifth; "
            f"{max_growth_bytes / 1e6:.1f} MB is allowed",
        )


def _median(samples: Sequence[int]) -> int:
    return int(statistics.median(samples)) if samples else 0
