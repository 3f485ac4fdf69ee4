"""``BatchLayout``: where the tokens of one step stand, in their requests and in the paged cache.

A step's tokens lie one after the other, request by request (a ragged batch)::

    tokens         a0 a1 a2 a3 | b7 | c2 c3
    query_starts   0             4    5      7         S + 1 entries
    context_lens   4             8    4                tokens each request attends to, its new ones included
    block_tables   [[5, .], [0, 3], [1, .]]            blocks of each request in order, padded with 0
    slots          position in the flat cache of each token's own key and value
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import paddle

from paddle_ds.kernels.upload import upload

IntArray = npt.NDArray[np.int32]

#: cache slots that the reference gathers for one batched decode attention, which bounds its temporary memory
MAX_GATHERED_SLOTS = 1 << 16

#: elements of the masks that one request's prompt keeps for a step (4 bytes each)
_MAX_KEPT_MASK = 1 << 24
#: attention scores held at a time, which bounds the temporary memory of a long prompt (4 bytes each, three copies)
_MAX_SCORES = 1 << 23


@dataclass(frozen=True)
class BatchLayout:
    """Shapes: S requests, T tokens, B blocks in the longest table."""

    query_starts: IntArray
    context_lens: IntArray
    block_tables: IntArray
    block_tokens: int
    #: int64 [T]
    slots: paddle.Tensor
    #: float32 [T, head_dim // 2] each
    cos: paddle.Tensor
    sin: paddle.Tensor

    @functools.cached_property
    def query_lens(self) -> IntArray:
        return np.diff(self.query_starts).astype(np.int32)

    @functools.cached_property
    def device_tables(self) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """``query_starts``, ``context_lens`` and ``block_tables`` as int32 tensors."""
        return upload(self.query_starts), upload(self.context_lens), upload(self.block_tables)

    @functools.cached_property
    def decode_groups(self) -> tuple[DecodeGroup, ...]:
        """Requests with one new token, in groups of similar length that one batched attention can gather at once."""
        members = np.flatnonzero(self.query_lens == 1)
        members = members[np.argsort(self.context_lens[members], kind="stable")]
        groups: list[DecodeGroup] = []
        first = 0
        for last in range(len(members)):
            following = int(self.context_lens[members[last + 1]]) if last + 1 < len(members) else 0
            if not following or (last + 2 - first) * following > MAX_GATHERED_SLOTS:
                groups.append(self._decode(members[first : last + 1]))
                first = last + 1
        return tuple(groups)

    def rows_at_a_time(self, num_heads: int, context: int) -> int:
        """Rows of a prompt whose attention scores are held at the same time."""
        return max(1, _MAX_SCORES // (num_heads * context))

    def stage(self, num_heads: int) -> None:
        """Upload all that the attention of a step will read, before the step has begun.

        An upload waits for the device. Behind work that never ends it would wait for ever, and nobody could tell why.
        """
        assert all(len(group.rows) for group in self.decode_groups)
        for group in self.prefill_groups:
            for _ in group.masks(self.rows_at_a_time(num_heads, int(group.slots.shape[0]))):
                pass

    def _decode(self, members: npt.NDArray[np.intp]) -> DecodeGroup:
        lengths = self.context_lens[members]
        longest = int(lengths.max())
        slots = np.stack([self._padded_slots(int(index), longest) for index in members])
        visible = np.arange(longest)[None, :] < lengths[:, None]
        return DecodeGroup(
            rows=self.query_starts[members],
            row_ids=upload(self.query_starts[members]),
            slots=upload(slots.reshape(-1)),
            mask=upload(np.where(visible, 0.0, -np.inf).astype(np.float32)[:, None, None, :]),
        )

    @functools.cached_property
    def prefill_groups(self) -> tuple[PrefillGroup, ...]:
        """Requests with several new tokens, one attention each."""
        return tuple(self._prefill(int(index)) for index in np.flatnonzero(self.query_lens > 1))

    def _prefill(self, index: int) -> PrefillGroup:
        start, stop = int(self.query_starts[index]), int(self.query_starts[index + 1])
        context = int(self.context_lens[index])
        first_position = context - (stop - start)
        return PrefillGroup(start, stop, first_position, upload(self._padded_slots(index, context)))

    def _padded_slots(self, index: int, length: int) -> npt.NDArray[np.int64]:
        positions = np.minimum(np.arange(length), self.context_lens[index] - 1)
        blocks = self.block_tables[index].astype(np.int64)[positions // self.block_tokens]
        return blocks * self.block_tokens + positions % self.block_tokens


@dataclass(frozen=True)
class DecodeGroup:
    """``rows`` int32 [S], on the host, and ``row_ids``, the same as a tensor; ``slots`` int64 [S * L]; ``mask`` float32
    [S, 1, 1, L], L the longest context.
    """

    rows: IntArray
    row_ids: paddle.Tensor
    slots: paddle.Tensor
    mask: paddle.Tensor


@dataclass(frozen=True)
class PrefillGroup:
    """Rows ``start .. stop`` of the batch, the first at ``first_position`` of its request; ``slots`` int64 [L]."""

    start: int
    stop: int
    first_position: int
    slots: paddle.Tensor

    def masks(self, most_rows: int) -> Iterator[tuple[int, int, paddle.Tensor]]:
        """Rows of the batch, at most ``most_rows`` a piece: the first, the one behind the last, and the mask float32 [rows, L].

        Every layer wants the same masks. They are kept for the step where they are not too large.
        """
        keep = (self.stop - self.start) * self.slots.shape[0] <= _MAX_KEPT_MASK
        for start in range(self.start, self.stop, most_rows):
            stop = min(start + most_rows, self.stop)
            mask = self._kept.get((start, stop))
            if mask is None:
                mask = self._mask(start, stop)
            if keep:
                self._kept[start, stop] = mask
            yield start, stop, mask

    @functools.cached_property
    def _kept(self) -> dict[tuple[int, int], paddle.Tensor]:
        return {}

    def _mask(self, start: int, stop: int) -> paddle.Tensor:
        positions = self.first_position + np.arange(start - self.start, stop - self.start)
        visible = np.arange(self.slots.shape[0])[None, :] <= positions[:, None]
        return upload(np.where(visible, 0.0, -np.inf).astype(np.float32))
