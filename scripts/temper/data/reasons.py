"""Why a row cannot be used: a stable code, a sentence, and what to do about it."""

from __future__ import annotations

from typing import NamedTuple


class Reason(NamedTuple):
    """What is wrong with a row, and the remedy."""

    text: str
    remedy: str


REASONS = {
    "not-csv": Reason("not readable as CSV", "write a quote inside a field twice, and quote the whole field"),
    "unclosed-quote": Reason("a quote is opened and never closed", "close it; a quote inside a field is written twice"),
    "field-count": Reason("not as many fields as the header has", "quote fields that hold the separator"),
    "not-json": Reason("not valid JSON", "write one JSON object per line"),
    "not-an-object": Reason("not an object with fields", "write each row as {…} with a name for each value"),
    "encoding": Reason("bytes or characters that are damaged", "save the file as UTF-8 from its source"),
    "wrong-type": Reason("a value that is no text", "write questions and answers as text"),
    "empty-question": Reason("the question is empty", "fill it in or delete the row"),
    "empty-answer": Reason("the answer is empty", "fill it in or delete the row"),
    "control-character": Reason("a control character inside the text", "delete it; it comes from a damaged export"),
    "too-long": Reason("longer than data.max_chars", "cut the row into several, or raise data.max_chars"),
    "role-order": Reason(
        "the speakers do not take turns", "user and assistant must alternate, from a user to an assistant"
    ),
    "unknown-role": Reason("a role that is not trained on", "use system, user and assistant (human and gpt)"),
    "code-syntax": Reason("Python code that does not parse", "correct the code, or leave the fence without a language"),
    "no-preference": Reason("chosen and rejected answer are the same", "give two answers of different quality"),
    "personal-data": Reason("holds personal data", "replace it, or set data.personal to mask"),
}


class Rejected(Exception):
    """A row that cannot be used."""

    def __init__(self, reason: str, detail: str = "", row: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail, self.row = reason, detail or REASONS[reason].text, row
