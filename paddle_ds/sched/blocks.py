"""Accounting of the paged KV cache: which blocks are free, which are in use, and which hold tokens that may be wanted again.

A block holds the keys and values of ``block_tokens`` consecutive tokens, for all layers::

    token      0 ........ 15 | 16 ....... 31 | 32 ..
    block_ids      [ 7 ]           [ 2 ]       [ 9 ]      slot of token 17 = 2 * block_tokens + 1

A full block is known by a digest of its tokens and of everything before them. Requests with the same beginning share such blocks;
a block nobody uses keeps its content until it is needed for something else, longest unused first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import msgspec


class BlockPool:
    """Hands out block numbers ``0 .. num_blocks - 1``."""

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        assert num_blocks > 0
        assert block_tokens > 0
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._num_users = [0] * num_blocks
        #: blocks without users, in the order in which they will be taken
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}

    @property
    def num_free_blocks(self) -> int:
        """Blocks without users, those that still hold known tokens included."""
        return len(self._free)

    @property
    def num_known_blocks(self) -> int:
        """Blocks whose tokens can be shared."""
        return len(self._block_of)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks ``num_tokens`` tokens take."""
        return -(-num_tokens // self.block_tokens)

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` blocks for new content. The caller has looked at ``num_free_blocks``."""
        assert count <= len(self._free), "allocate() beyond num_free_blocks"
        taken = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            self._forget(block)
            self._num_users[block] = 1
        return taken

    def find(self, digests: Iterable[bytes]) -> list[int]:
        """The blocks of the longest known beginning of ``digests``. They are not taken yet."""
        found: list[int] = []
        for digest in digests:
            block = self._block_of.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def num_unused(self, blocks: Iterable[int]) -> int:
        """How many of ``blocks`` have no user, so that sharing them takes them from the free ones."""
        return sum(self._num_users[block] == 0 for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Become one more user of blocks that :meth:`find` gave."""
        for block in blocks:
            if self._num_users[block] == 0:
                del self._free[block]
            self._num_users[block] += 1

    def remember(self, block: int, digest: bytes) -> None:
        """A block in use is full now; the first block with a digest is the one that is shared."""
        assert self._num_users[block] > 0
        if digest not in self._block_of and block not in self._digest_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest

    def free(self, blocks: Sequence[int]) -> None:
        """Give blocks back, the last first: a beginning is more often wanted again than its end."""
        for block in reversed(blocks):
            assert self._num_users[block] > 0, f"block {block} freed twice"
            self._num_users[block] -= 1
            if self._num_users[block] == 0:
                self._free[block] = None
                if block not in self._digest_of:
                    self._free.move_to_end(block, last=False)  # nothing to lose: taken before any known one

    def forget_all(self) -> None:
        """No content can be shared any more, because the cache was written by something else."""
        for block in list(self._digest_of):
            self._forget(block)

    def _forget(self, block: int) -> None:
        digest = self._digest_of.pop(block, None)
        if digest is not None:
            del self._block_of[digest]


def extend_digests(digests: list[bytes], token_ids: Sequence[int], num_blocks: int, block_tokens: int) -> None:
    """Append digests until there is one for each of the first ``num_blocks`` full blocks of ``token_ids``.

    Each covers its tokens and the digest before it, so equal digests mean equal beginnings (BLAKE2b, 128 bits).
    """
    while len(digests) < num_blocks:
        start = len(digests) * block_tokens
        tokens = msgspec.msgpack.encode(token_ids[start : start + block_tokens])
        before = digests[-1] if digests else b""
        digests.append(hashlib.blake2b(before + tokens, digest_size=16).digest())
