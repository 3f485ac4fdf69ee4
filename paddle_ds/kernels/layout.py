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
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import paddle

from paddle_ds.kernels.upload import upload

IntArray = npt.NDArray[np.int32]

#: cache slots that the reference gathers for one batched decode attention, which bounds its temporary memory
MAX_GATHERED_SLOTS = 1 << 16


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

    def _decode(self, members: npt.NDArray[np.intp]) -> DecodeGroup:
        lengths = self.context_lens[members]
        longest = int(lengths.max())
        slots = np.stack([self._padded_slots(int(index), longest) for index in members])
        visible = np.arange(longest)[None, :] < lengths[:, None]
        return DecodeGroup(
            rows=self.query_starts[members],
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
    """``rows`` int32 [S], on the host; ``slots`` int64 [S * L]; ``mask`` float32 [S, 1, 1, L], L the longest context."""

    rows: IntArray
    slots: paddle.Tensor
    mask: paddle.Tensor


@dataclass(frozen=True)
class PrefillGroup:
    """Rows ``start .. stop`` of the batch, the first at ``first_position`` of its request; ``slots`` int64 [L]."""

    start: int
    stop: int
    first_position: int
    slots: paddle.Tensor
