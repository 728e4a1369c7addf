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
csv.field_size_limit(16 * 1024 * 1024)  # bytes: the module's own 128 kB stops at a pasted document


def text_of(path: Path, encoding: str) -> str:
    """Return the file's text; DataError when it is empty, binary or not in `encoding`."""
    if not path.is_file():
        raise DataError(f"{path}: no such file", "give a CSV, TSV, JSON or JSONL file that exists")
    content = path.read_bytes()
    if not content.strip():
        raise DataError(f"{path}: the file is empty", "give a file with a header line and rows")
    utf8 = encoding.lower().replace("_", "-") in ("utf-8", "utf8")
    try:
        text = content.decode("utf-8-sig" if utf8 else encoding)
    except LookupError:
        raise DataError(f"{path}: unknown encoding {encoding!r}", "use utf-8 or gb18030") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} (0x{content[error.start]:02x}) is not {encoding}",
                        _encoding_hint(content)) from None
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


def _table(text: str, path: Path, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader)]
    except (StopIteration, csv.Error) as error:
        raise DataError(f"{path}: no header line ({error})", "give the column names in the first line") from None
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, f"not readable as CSV: {error}"
            continue
        if not values:
            continue
        if len(values) != len(header):
            yield line, f"{len(values)} fields where the header has {len(header)}"
        else:
            yield line, dict(zip(header, values, strict=True))


def _records(text: str, path: Path) -> Iterator[Row]:
    try:
        whole = json.loads(text) if text.lstrip().startswith("[") else None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}", "correct the file") from None
    numbered = enumerate(whole, 1) if whole is not None else enumerate(text.split("\n"), 1)
    for line, item in numbered:
        if isinstance(item, str) and whole is None:
            if not item.strip():
                continue
            try:
                item = json.loads(item)
            except ValueError as error:
                yield line, f"not valid JSON: {error}"
                continue
        yield line, item if isinstance(item, dict) else "not an object with fields"


def rows(path: Path, encoding: str) -> Iterator[Row]:
    """Yield (line number, fields) for each row, or (line number, why it cannot be read)."""
    text, kind = text_of(path, encoding), path.suffix.lower()
    if kind in (".csv", ".tsv"):
        return _table(text, path, "\t" if kind == ".tsv" else ",")
    if kind in (".json", ".jsonl"):
        return _records(text, path)
    raise DataError(f"{path}: unknown kind of file {kind!r}", "give .csv, .tsv, .json or .jsonl")
