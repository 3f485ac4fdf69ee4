"""Stop strings, found across chunk borders.

The rule is the only one a stream can keep without looking ahead: **the match that ends first wins**; of several that
end at the same character, the longest. So ``stop=["abcd", "bc"]`` on ``abcd`` stops at ``bc`` and the text is ``a``,
however the text was cut into pushes.

Each stop string has a Knuth-Morris-Pratt matcher (SIAM J. Comput. 6(2), 1977). The longest partial match of any of them
is what has to be held back:

    stop "<END>"   text  "done <EN"   ->  out "done "   held "<EN"
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class StopResult:
    """Text that may go out now, and whether (and by which string) the answer ended."""

    text: str
    stopped: bool = False
    matched: str | None = None


class _Matcher:
    """How many characters of one stop string the text so far ends with."""

    __slots__ = ("_fallback", "num_matched", "stop")

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.num_matched = 0
        self._fallback = [0] * len(stop)
        length = 0
        for index in range(1, len(stop)):
            while length and stop[index] != stop[length]:
                length = self._fallback[length - 1]
            if stop[index] == stop[length]:
                length += 1
            self._fallback[index] = length

    def step(self, char: str) -> bool:
        """Take one character; true where the stop string just became complete."""
        length, stop = self.num_matched, self.stop
        if length == len(stop):
            length = self._fallback[length - 1]
        while length and char != stop[length]:
            length = self._fallback[length - 1]
        self.num_matched = length + 1 if char == stop[length] else 0
        return self.num_matched == len(stop)

    @property
    def num_held(self) -> int:
        """Characters that may still become this stop string."""
        length = self.num_matched
        return self._fallback[length - 1] if length == len(self.stop) else length


class StopChecker:
    """Cuts a stream of text at the first stop string.

    Args:
        stop: the strings, none of them empty.
        include_stop_str: the matched string is part of the text.
        min_tokens: a string that is complete before so many tokens exist does not count.
    """

    def __init__(self, stop: Sequence[str], include_stop_str: bool = False, min_tokens: int = 0) -> None:
        assert all(stop), "an empty stop string is refused when the request is read"
        self._matchers = [_Matcher(text) for text in dict.fromkeys(stop)]
        self._first_chars = {text[0] for text in stop}
        self._include = include_stop_str
        self._min_tokens = min_tokens
        self._held = ""
        self._stopped = False

    def push(self, text: str, num_tokens: int) -> StopResult:
        """Take the text of the next token.

        Args:
            text: what follows the text pushed before.
            num_tokens: tokens of the answer up to and with this text.
        """
        if self._stopped:
            return StopResult("")
        if not self._matchers or (not self._held and self._first_chars.isdisjoint(text)):
            return StopResult(text)
        buffer = self._held + text
        num_before = len(self._held)
        may_stop = num_tokens >= self._min_tokens
        for offset, char in enumerate(text):
            complete = [matcher.stop for matcher in self._matchers if matcher.step(char)]
            if complete and may_stop:
                return self._stop(buffer, num_before + offset + 1, max(complete, key=len))
        num_held = max(matcher.num_held for matcher in self._matchers)
        border = len(buffer) - num_held
        self._held = buffer[border:]
        return StopResult(buffer[:border])

    def flush(self) -> str:
        """The held-back text, once it is known that nothing follows."""
        held, self._held = self._held, ""
        return held

    def _stop(self, buffer: str, end: int, matched: str) -> StopResult:
        self._stopped = True
        self._held = ""
        return StopResult(buffer[: end if self._include else end - len(matched)], True, matched)
