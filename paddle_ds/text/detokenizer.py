"""An answer's tokens to text while they arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from paddle_ds.text.decoding import ByteStreamDecoder

if TYPE_CHECKING:
    from paddle_ds.text.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """Text of a growing answer, exact at every step.

    ``"".join(pushes) + flush()`` equals ``tokenizer.decode(ids)``; with a prompt it is what ``ids`` add to the prompt's
    text, so that an answer going on in the middle of a sentence keeps its leading space, and a character whose first
    bytes ended the prompt comes out whole. No push splits a character, and none emits U+FFFD for bytes that a later
    token could still complete.

    Args:
        tokenizer: the tokenizer the ids belong to.
        skip_special_tokens: leave tokens marked special out of the text.
        prompt_ids: what the answer continues.
        keep_ids: special tokens that are kept all the same.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_special_tokens: bool = True,
        prompt_ids: Sequence[int] = (),
        *,
        keep_ids: frozenset[int] = frozenset(),
    ) -> None:
        skip_ids = tokenizer.special_ids - keep_ids if skip_special_tokens else frozenset()
        self._decoder = ByteStreamDecoder(tokenizer.token_bytes_table, skip_ids)
        self._decoder.continue_from(prompt_ids)

    def push(self, token_ids: Sequence[int]) -> str:
        """Text that is certain once these tokens are known."""
        return self._decoder.push(token_ids)

    def flush(self) -> str:
        """What is left at the end: U+FFFD where bytes of a character are missing, else nothing."""
        return self._decoder.push((), final=True)
