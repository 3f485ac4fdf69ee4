"""Accounting of the paged KV cache: which blocks are free, which are in use.

A block holds the keys and values of ``block_tokens`` consecutive tokens of one request, for all layers::

    token      0 ........ 15 | 16 ....... 31 | 32 ..
    block_ids      [ 7 ]           [ 2 ]       [ 9 ]      slot of token 17 = 2 * block_tokens + 1
"""

from __future__ import annotations

from collections import deque


class BlockPool:
    """Hands out block numbers ``0 .. num_blocks - 1``."""

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        assert num_blocks > 0
        assert block_tokens > 0
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._free: deque[int] = deque(range(num_blocks))
        self._in_use = bytearray(num_blocks)

    @property
    def num_free_blocks(self) -> int:
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks ``num_tokens`` tokens take."""
        return -(-num_tokens // self.block_tokens)

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` blocks. The caller has looked at ``num_free_blocks``."""
        assert count <= len(self._free), "allocate() beyond num_free_blocks"
        taken = [self._free.popleft() for _ in range(count)]
        for block in taken:
            self._in_use[block] = 1
        return taken

    def free(self, blocks: list[int]) -> None:
        """Give blocks back."""
        for block in blocks:
            assert self._in_use[block], f"block {block} freed twice"
            self._in_use[block] = 0
            self._free.append(block)
