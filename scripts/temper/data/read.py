"""Rows from CSV, TSV, JSON and JSONL files, each with its line number, none lost silently."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from temper.errors import DataError

Row = tuple[int, dict[str, Any] | str]  # line number, and the fields or why they cannot be read
KINDS = (".csv", ".tsv", ".json", ".jsonl")
csv.field_size_limit(16 * 1024 * 1024)  # bytes: the module's own 128 kB stops at a pasted document


def text_of(path: Path, encoding: str) -> str:
    """Return the file's text; DataError when it is empty, binary, not in `encoding`, or not of one of KINDS."""
    if not path.is_file():
        raise DataError(f"{path}: no such file", "give a CSV, TSV, JSON or JSONL file that exists")
    if path.suffix.lower() not in KINDS:
        raise DataError(f"{path}: unknown kind of file {path.suffix!r}", "save it as .csv, .tsv, .json or .jsonl")
    content = path.read_bytes()
    try:
        text = content.decode(encoding).removeprefix("\ufeff")  # a byte order mark
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} (0x{content[error.start]:02x}) is not {encoding}", _encoding_hint(content)
        ) from None
    except (LookupError, UnicodeError):
        raise DataError(f"{path}: unknown encoding {encoding!r}", "use utf-8 or gb18030") from None
    if not text.strip():
        raise DataError(f"{path}: the file is empty", "give a file with a header line and rows")
    if "\0" in text:
        raise DataError(f"{path}: holds NUL characters, so it is no text file", _encoding_hint(content))
    return text


def _encoding_hint(content: bytes) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "it looks like UTF-16; set data.encoding (--encoding) to utf-16"
    try:
        content.decode("gb18030")
    except UnicodeDecodeError:
        return "save it as UTF-8"
    if b"\0" in content:
        return "save it as UTF-8 text"
    return "it looks like GBK; set data.encoding (--encoding) to gb18030"


def _header(names: list[str], path: Path) -> list[str]:
    header = [name.strip() for name in names]
    if twice := [name for name in dict.fromkeys(header) if name and header.count(name) > 1]:
        raise DataError(f"{path}: the column {twice[0]!r} comes twice", "give each column a name of its own")
    return header


def _table(text: str, path: Path, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = _header(next(values for values in reader if values), path)
    except (StopIteration, csv.Error) as error:
        raise DataError(f"{path}: no header line ({error})", "give the column names in the first line") from None
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "end of data" in str(error):  # it would swallow every row up to the end and count as one
                raise DataError(
                    f"{path}: a quote opened in the row of line {line} is never closed",
                    "close it; a quote inside a field is written twice",
                ) from None
            until = f" (up to line {reader.line_num})" if reader.line_num > line else ""
            yield line, f"not readable as CSV: {error}{until}"
            continue
        if not values:
            continue
        if len(values) != len(header):
            yield line, f"{len(values)} fields where the header has {len(header)}"
        else:
            yield line, dict(zip(header, values, strict=True))


def _fields(item: Any) -> dict[str, Any] | str:
    if not isinstance(item, dict):
        return "not an object with fields"
    try:
        json.dumps(item, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "half of a character (an unpaired surrogate)"
    return item


def _records(text: str, path: Path) -> Iterator[Row]:
    try:
        whole = json.loads(text) if text.lstrip().startswith("[") else None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}", "correct the file") from None
    numbered = enumerate(whole, 1) if whole is not None else enumerate(text.split("\n"), 1)
    for line, item in numbered:
        if isinstance(item, str) and whole is None:
            if not item.strip():
                continue
            try:
                item = json.loads(item)
            except (ValueError, RecursionError) as error:
                yield line, f"not valid JSON: {error}"
                continue
        yield line, _fields(item)


def rows(path: Path, encoding: str) -> Iterator[Row]:
    """Yield (line number, fields) for each row, or (line number, why it cannot be read)."""
    text, kind = text_of(path, encoding), path.suffix.lower()
    if kind in (".csv", ".tsv"):
        return _table(text, path, "\t" if kind == ".tsv" else ",")
    return _records(text, path)
