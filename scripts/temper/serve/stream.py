"""Text out of tokens, piece by piece, and the test whether an answer is complete."""

from __future__ import annotations

import re
from typing import Any

UNFINISHED = "\ufffd"  # what a decoder shows for bytes that are no character yet
CONTEXT = 5  # prompt tokens decoded along, as TGI does: a tokenizer may add or drop a space by what stands before


class Pieces:
    """Decodes one answer's tokens one at a time; a character split over tokens comes out whole, with its last one."""

    def __init__(self, tokenizer: Any, prompt: list[int]) -> None:
        self.tokenizer = tokenizer
        self.ids = prompt[-CONTEXT:]
        self.before = len(self.ids)
        self._from, self._read = 0, len(self.ids)

    def push(self, token: int) -> str:
        """Return the text that `token` completes; "" while a character is unfinished."""
        self.ids.append(token)
        known = self.tokenizer.decode(self.ids[self._from : self._read])
        text = self.tokenizer.decode(self.ids[self._from :])
        if len(text) <= len(known) or text.endswith(UNFINISHED):
            return ""
        self._from, self._read = self._read, len(self.ids)
        return str(text[len(known) :])

    def all(self) -> str:
        """Return the whole answer without special tokens.

        An unfinished character at its end is left out. (TGI returns an empty text then; nobody can want that.)
        """
        start = max(self.before - 1, 0)
        known = self.tokenizer.decode(self.ids[start : self.before], skip_special_tokens=True)
        text = str(self.tokenizer.decode(self.ids[start:], skip_special_tokens=True))
        return text[len(known) :].rstrip(UNFINISHED)


class Ending:
    """Says when an answer is complete: the limit first, then an end token, then a stop sequence."""

    def __init__(self, max_new_tokens: int, eos: frozenset[int], stop: list[str]) -> None:
        self.left, self.eos = max_new_tokens, eos
        # `$` lets a line feed follow the stop sequence, as it does in TGI.
        self.stop = [re.compile(re.escape(text) + "$") for text in stop]
        self.text, self.kept = "", 200 + max((len(text) for text in stop), default=0)

    def push(self, token: int, text: str) -> str | None:
        """Take one token and its text; return "length", "eos_token", "stop_sequence", or None to go on."""
        self.left -= 1
        if self.left <= 0:
            return "length"
        if token in self.eos:
            return "eos_token"
        self.text = (self.text + text)[-self.kept :] if self.stop else ""
        return "stop_sequence" if any(pattern.search(self.text) for pattern in self.stop) else None
