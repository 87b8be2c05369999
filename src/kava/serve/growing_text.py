"""The text of an answer while its tokens arrive: what can be sent already, and where it stops."""

from collections.abc import Sequence
from typing import Any

BROKEN = "\N{REPLACEMENT CHARACTER}"  # a character of which a token is missing


class GrowingText:
    """What was sent, put together, is what the whole answer reads: `tokenizer.decode(tokens).strip()`, cut before a stop.

    Held back until later tokens decide: white space at the end, characters that are not complete, beginnings of a stop
    text, and the last word of tokenizers that take spaces out when they decode.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()):
        self._tokenizer, self._stop = tokenizer, stop
        self._cleans = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
        self._sent = 0  # characters
        self.stopped: str | None = None  # the text, once a stop text is in it

    def more(self, tokens: Sequence[int]) -> str:
        """The further text that is certain after these tokens, all of the answer's so far."""
        raw = self._tokenizer.decode(tokens, skip_special_tokens=True)
        ends = [raw.find(stop) for stop in self._stop if stop in raw]
        if ends:
            self.stopped = raw[: min(ends)].strip()
            return self._new(self.stopped)
        return self._new(self._certain(raw).strip())

    def rest(self, text: str) -> str:
        """What is not sent yet of the whole text."""
        return self._new(text)

    def _certain(self, raw: str) -> str:
        text = raw[: len(raw) - max((_begun(raw, stop) for stop in self._stop), default=0)].rstrip(BROKEN)
        if self._cleans:
            text = text[: max(text.rfind(" "), 0)]
        return text

    def _new(self, text: str) -> str:
        new = text[self._sent :]
        self._sent = max(self._sent, len(text))
        return new


def _begun(text: str, stop: str) -> int:
    """Characters at the end of the text with which `stop` may begin."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
