"""Input files found and brought to a plain form, UTF-8 CSV, TSV or JSONL, which can be cut into chunks.

What is such a file already is read where it lies; all else is converted block by block into a spool folder.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from temper.errors import DataError

SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".xlsx": "xlsx", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl"}
SUFFIXES |= {".parquet": "parquet"}
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
KNOWN = f"{', '.join(SUFFIXES)}, also with {', '.join(COMPRESSED)}"
MARKS = (  # of byte order; UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
HEAD, BLOCK, WINDOW = 1 << 20, 4 << 20, 1 << 16  # bytes looked at first, converted and judged at a time
ENOUGH = 1000  # characters beyond ASCII by which an encoding is judged
ROWS = 1000  # of a Parquet file, held at a time
LONGEST = 64 << 20  # characters of one item of a JSON file
ASCII = bytes(range(128))
COMMON = bytes([*range(0xA1, 0xA4), *range(0xB0, 0xD8)])  # GB2312's rows of punctuation and of everyday characters
BLANKS = re.compile(r"[ \t\r\n]*")
BAD = re.compile("[\udc00-\udcff]")  # bytes that could not be decoded
CONVERSATIONS = ("messages", "conversations", "conversation", "chosen", "rejected", "history")  # lists inside a row


@dataclass(frozen=True)
class Source:
    """An input file, and the plain file to read in its place."""

    name: str  # how messages call it: its path from the inputs' common folder
    path: Path  # the original
    plain: Path  # the original too when it needs no conversion
    form: str  # csv, tsv or jsonl: how `plain` is read
    kind: str  # csv, tsv, xlsx, json, jsonl or parquet
    compression: str  # "", gzip or zstd
    encoding: str  # utf-8, utf-8 with byte order mark, gb18030, utf-16, the one asked for, or "" where there is none
    start: int  # bytes of a byte order mark to skip in `plain`


def _kind(name: str) -> tuple[str, str]:
    """Return the kind and compression that a file's name tells; the kind is "" for an unknown one."""
    stem, suffix = os.path.splitext(name.lower())
    compression = COMPRESSED.get(suffix, "")
    return SUFFIXES.get(os.path.splitext(stem)[1] if compression else suffix, ""), compression


def _check(path: Path) -> None:
    if not path.is_file():
        raise DataError(
            f"{path}: no such file", "give a CSV, TSV, XLSX, JSON, JSONL or Parquet file, or a folder of them"
        )
    if not _kind(path.name)[0]:
        raise DataError(f"{path}: unknown kind of file {path.suffix!r}", f"save it as one of {KNOWN}")


def _inside(folder: Path) -> list[Path]:
    """Return the known files in a folder, also behind links to folders; none that is hidden or a README."""

    def stop(error: OSError) -> None:
        raise error

    found, seen = [], {os.path.realpath(folder)}
    for here, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        real = {os.path.realpath(os.path.join(here, name)): name for name in sorted(folders) if name[0] != "."}
        folders[:] = [name for place, name in real.items() if place not in seen]
        seen |= real.keys()
        names = (name for name in files if name[0] != "." and not name.lower().startswith("readme"))
        found += [Path(here, name) for name in names if _kind(name)[0]]
    if not found:
        raise DataError(f"{folder}: no file here that can be read", f"put in files that end in one of {KNOWN}")
    return found


def find(paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """Return (name, path) of each file given and of each known file inside a folder given, by name, every file once.

    Raises DataError for a path without a file, a file of an unknown kind, and a folder without a known file.
    """
    files = [file for path in paths for file in (_inside(path) if path.is_dir() else [path])]
    for file in files:
        _check(file)
    common = os.path.commonpath([os.path.abspath(path if path.is_dir() else path.parent) for path in paths] or ["/"])
    once: dict[str, tuple[str, Path]] = {}
    for name, file in sorted((os.path.relpath(os.path.abspath(file), common), file) for file in files):
        once.setdefault(os.path.realpath(file), (os.fsencode(name).decode(errors="backslashreplace"), file))
    return list(once.values())


def prepare(name: str, path: Path, spool: Path, encoding: str = "auto") -> Source:
    """Return `path` as a source, converted into the folder `spool` if need be; line n of its JSONL is row or item n.

    Of an .xlsx the first sheet with a header and rows counts. Raises DataError when it is no file that can be read.
    """
    _check(path)
    kind, compression = _kind(path.name)
    if encoding != "auto":
        _codec(path, encoding)
    target, plain, start, label = (
        spool / hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:16],
        path,
        0,
        "",
    )
    if compression:
        plain = _unpack(path, compression, target.with_suffix(".unpacked"))
    if not plain.stat().st_size:
        raise _empty(path)
    lines = None
    if kind == "xlsx":
        lines = _sheet(path, plain)
    elif kind == "parquet":
        lines = _parquet(path, plain)
    else:
        label, codec, start = _encoding(path, plain, encoding)
        if codec != "utf-8":
            plain, start = _recode(path, plain, codec, target.with_suffix(".utf8")), 0
        _check_text(path, plain, start)
        if kind == "json" and _is_lines(plain, start):
            kind = "jsonl"
        elif kind == "json":
            lines = _json(path, plain)
    if lines is not None:
        plain, start = target.with_suffix(".jsonl"), 0
        with open(plain, "wb") as out:
            out.writelines(lines)
    for step in set(spool.glob(f"{target.name}.*")) - {plain}:
        step.unlink()
    return Source(name, path, plain, kind if kind in ("csv", "tsv") else "jsonl", kind, compression, label, start)


def _empty(path: Path) -> DataError:
    return DataError(f"{path}: the file is empty", "give a file with a header line and rows")


def _unpack(path: Path, compression: str, target: Path) -> Path:
    import pyarrow

    done = 0
    with open(path, "rb") as packed, open(target, "wb") as out:
        try:
            with pyarrow.input_stream(packed, compression=compression) as stream:
                while block := stream.read(BLOCK):
                    done += out.write(block)
        except OSError as error:
            if error.errno:  # of the disk, not of the archive
                raise
            raise DataError(
                f"{path}: the {compression} file is damaged after {done} bytes of text", "copy it again from its source"
            ) from None
    return target


def _escape(error: UnicodeError) -> tuple[str, int]:
    """Keep bytes that cannot be decoded as halves of characters, whatever the encoding."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(chr(0xDC00 | byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error("temper.escape", _escape)


def _codec(path: Path, encoding: str) -> str:
    """Return Python's name of the encoding asked for; DataError when there is none, or none of text."""
    try:
        " ".encode(encoding)
        return codecs.lookup(encoding).name.removesuffix("-sig")
    except (LookupError, ValueError):
        raise DataError(f"{path}: unknown encoding {encoding!r}", "use utf-8 or gb18030") from None


def _encoding(path: Path, plain: Path, wanted: str) -> tuple[str, str, int]:
    """Return an encoding as messages call it and as Python does, and the bytes of UTF-8's byte order mark."""
    with open(plain, "rb") as file:
        head = file.read(HEAD)
    mark = next((name for sign, name in MARKS if head.startswith(sign)), "")
    if wanted != "auto":
        label = wanted
        codec = _codec(path, wanted)
        if codec in ("utf-16", "utf-32") and mark != codec:
            codec = (codec == "utf-16" and _utf_16(head)) or f"{codec}-le"
    elif mark == "utf-32":
        raise DataError(f"{path}: the file is in UTF-32", "save it as UTF-8")
    elif mark:
        codec, label = mark, {"utf-8": "utf-8 with byte order mark"}.get(mark, mark)
    elif codec := _utf_16(head):
        label = "utf-16"
    else:
        codec = label = "" if b"\0" in head else _judged(path, plain)
    if b"\0" in head and not codec.startswith(("utf-16", "utf-32")):
        remedy = "it looks like UTF-16; set data.encoding (--encoding) to auto" if mark == "utf-16" else ""
        raise DataError(f"{path}: holds NUL characters, so it is no text file", remedy or "save it as UTF-8 text")
    return label, codec, len(codecs.BOM_UTF8) if mark == codec == "utf-8" else 0


def _utf_16(head: bytes) -> str:
    """Return the codec of UTF-16 without a byte order mark, whose ASCII characters are every other byte; "" if none."""
    low, high = head[::2].count(0), head[1::2].count(0)
    codec, found = ("utf-16-le", high) if high > low else ("utf-16-be", low)
    if found * 200 < len(head):
        return ""
    text = codecs.getincrementaldecoder(codec)("replace").decode(head)
    if "\0" in text or text.count("\ufffd") * 100 > len(text):
        return ""
    return codec if "\n" in text or "\r" in text or text.lstrip()[:1] in "[{" else ""


def _seen(plain: Path, codec: str) -> tuple[int, int, int, int]:
    """Return how many of the first characters beyond ASCII are good, common Chinese and bad; and the first bad byte."""
    good = common = bad = 0
    first, decoder = -1, codecs.getincrementaldecoder(codec)("temper.escape")
    with open(plain, "rb") as file:
        while good + bad < ENOUGH and (block := file.read(WINDOW)):
            kept = len(decoder.getstate()[0])
            if not kept and block.isascii():
                continue
            text = decoder.decode(block)
            wrong = len(BAD.findall(text))
            if wrong and first < 0:
                before = text[: BAD.search(text).start()]  # type: ignore[union-attr]
                first = file.tell() - len(block) - kept + len(before.encode(codec))
            bad += wrong
            good += len(text) - len(text.encode("ascii", "ignore")) - wrong
            leads = text.encode("gb2312", "ignore").translate(None, ASCII)[::2]
            common += len(leads) - len(leads.translate(None, COMMON))
    return good, common, bad, first


def _judged(path: Path, plain: Path) -> str:
    """Return utf-8 or gb18030, whichever the bytes beyond ASCII are; single damaged ones among them do not count."""
    good, _, bad, first = _seen(plain, "utf-8")
    if bad <= good / 10:
        return "utf-8"
    good, common, bad, _ = _seen(plain, "gb18030")
    if bad <= good / 10 and common >= good / 2:
        return "gb18030"
    with open(plain, "rb") as file:
        file.seek(first)
        byte = file.read(1)[0]
    raise DataError(
        f"{path}: byte {first} (0x{byte:02x}) is neither UTF-8 nor GB18030",
        "save it as UTF-8, or name its encoding with data.encoding (--encoding)",
    )


def _recode(path: Path, plain: Path, codec: str, target: Path) -> Path:
    """Write text as UTF-8 without a byte order mark, and bytes that are not in its encoding as what is no UTF-8."""
    decoder, first = codecs.getincrementaldecoder(codec)("temper.escape"), True
    with open(plain, "rb") as file, open(target, "wb") as out:
        more = True
        while more:
            block = file.read(BLOCK)
            more = bool(block)
            try:
                text = decoder.decode(block, not more)
            except UnicodeError:  # of a codec that keeps no errors
                raise DataError(f"{path}: cannot be read as {codec}", "use utf-8 or gb18030") from None
            if text and first:
                text, first = text.removeprefix("\ufeff"), False
            out.write(text.encode(errors="surrogatepass"))
    return target


def _check_text(path: Path, plain: Path, start: int) -> None:
    with open(plain, "rb") as file:
        file.seek(start)
        while block := file.read(HEAD):
            if block.strip():
                return
    raise _empty(path)


def _is_lines(plain: Path, start: int) -> bool:
    """Say whether a .json file holds one object per line: its first line is one, and more follows."""
    with open(plain, "rb") as file:
        file.seek(start)
        line, _, rest = file.read(HEAD).lstrip().partition(b"\n")
    try:
        return isinstance(json.loads(line.decode(errors="replace"), strict=False), dict) and bool(rest.strip())
    except (ValueError, RecursionError):
        return False


class _Json:
    """The values of a JSON file as they are written, of which only one is held at a time."""

    decode = json.JSONDecoder(strict=False, parse_int=str, parse_float=str, parse_constant=str).raw_decode

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path, self.file, self.text, self.at, self.lines, self.items = path, file, "", 0, 1, 0
        self.found: str | None = None

    def more(self) -> bool:
        """Read on, at least as much as is held, so that a long value is looked at few times."""
        if block := self.file.read(max(HEAD, len(self.text) - self.at)):
            self.lines += self.text.count("\n", 0, self.at)
            self.text, self.at = self.text[self.at :] + block, 0
        return bool(block)

    def wrong(self, what: str, at: int) -> DataError:
        """Return the error for something wrong at a place in the text held."""
        line = self.lines + self.text.count("\n", 0, at)
        place = f"in line {line}, item {self.items + 1}"
        return DataError(
            f"{self.path}: not valid JSON {place}: {what}", "correct the file, or write one object per line"
        )

    def next(self, wanted: str = "") -> str:
        """Return the next character that is no blank, "" at the end; take it when it is among those wanted, or fail."""
        while True:
            self.at = BLANKS.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text) or not self.more():
                break
        found = self.text[self.at : self.at + 1]
        if wanted and (not found or found not in wanted):
            there = f"before {found!r}" if found else "at the end of the file"
            raise self.wrong(f"{' or '.join(map(repr, wanted))} is missing {there}", self.at)
        self.at += bool(wanted)
        return found

    def value(self) -> str:
        """Take the next value and return its text."""
        self.next()
        while True:
            try:
                end = self.decode(self.text, self.at)[1]
            except json.JSONDecodeError as error:
                cut = error.pos + 16 > len(self.text) or error.msg.startswith("Unterminated")
                if cut and len(self.text) - self.at > LONGEST:
                    raise self.wrong(f"it is longer than {LONGEST} characters", self.at) from None
                if cut and self.more():
                    continue
                raise self.wrong(error.msg.removesuffix(" starting at").rstrip(": "), error.pos) from None
            except RecursionError:
                raise self.wrong("it is nested too deeply", self.at) from None
            if end + 3 > len(self.text) and self.more():  # a number may go on, as 1 in 1e-7
                continue
            found, self.at = self.text[self.at : end], end
            return found

    def array(self) -> Iterator[str]:
        """Take a list item by item."""
        self.next("[")
        if self.next() == "]":
            self.next("]")
            return
        while True:
            yield self.value()
            self.items += 1
            if self.next(",]") == "]":
                return

    def rows(self) -> Iterator[str]:
        """Take the file's list item by item, or the only list of objects in its object; `found` tells if it has one."""
        if self.next() == "[":
            self.found = "["
            yield from self.array()
            return
        self.next("{")
        while self.next() != "}":
            if self.next() != '"':
                raise self.wrong("a name in quotes is missing", self.at)
            name = json.loads(self.value(), strict=False)
            self.next(":")
            if self.next() == "[" and name not in CONVERSATIONS and self.of_objects():
                if self.found is not None:
                    lists = f"{self.found!r} and {name!r}"
                    raise DataError(f"{self.path}: holds several lists, {lists}", "keep one list of rows in a file")
                self.found = name
                yield from self.array()
            else:
                self.value()
            if self.next(",}") == "}":
                return
        self.next("}")

    def of_objects(self) -> bool:
        """Say whether the list that comes next begins with an object."""
        while True:
            first = BLANKS.match(self.text, self.at + 1).end()  # type: ignore[union-attr]
            if first < len(self.text) or not self.more():
                return self.text[first : first + 1] == "{"


def _json(path: Path, plain: Path) -> Iterator[bytes]:
    """Yield the items of a JSON file's list as lines, or all its values when it holds no list.

    An item stays as it is written but for line ends: a tab is as good between values, and as wrong inside one.
    """

    def line(item: str) -> bytes:
        return item.replace("\n", "\t").encode(errors="surrogateescape") + b"\n"

    with open(plain, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        whole = _Json(path, file)
        yield from map(line, whole.rows())
        if whole.found is not None:
            if whole.next():
                raise whole.wrong("something follows its end", whole.at)
            return
    with open(plain, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        values = _Json(path, file)
        while values.next():
            yield line(values.value())
            values.items += 1


def refuse_twice(path: Path, names: Sequence[str]) -> None:
    """Raise DataError for the first name that a header has twice; one without a name may come often."""
    counts = Counter(names)
    if twice := [name for name in names if name and counts[name] > 1]:
        raise DataError(f"{path}: the column {twice[0]!r} comes twice", "give each column a name of its own")


def _other(value: Any) -> Any:
    """Return as JSON what has no form of its own there: bytes as text where they are, else as nothing."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _cell(value: Any) -> Any:
    """Return a cell as JSON has it: whole numbers as they are shown, nothing for an empty cell."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return int(value)
    return None if value == "" else value


def _sheet(path: Path, plain: Path) -> Iterator[bytes]:
    """Yield the rows of the first sheet that has a header and rows, under their own numbers."""
    import orjson
    from python_calamine import CalamineError, CalamineWorkbook, SheetTypeEnum

    try:
        with open(plain, "rb") as file:
            book = CalamineWorkbook.from_filelike(file)
        names = (sheet.name for sheet in book.sheets_metadata if sheet.typ == SheetTypeEnum.WorkSheet)
        sheet = next((sheet for sheet in map(book.get_sheet_by_name, names) if sheet.height > 1), None)
    except CalamineError as error:
        remedy = "save it again in a spreadsheet program, without a password"
        raise DataError(f"{path}: cannot be read as .xlsx ({_reason(error)})", remedy) from None
    if sheet is None:
        raise DataError(f"{path}: no sheet has a header and rows", "give a file with a header line and rows")
    header: list[str] = []
    for row in sheet.iter_rows():
        cells = [_cell(value) for value in row]
        if header and any(cell is not None for cell in cells):
            fields = {name: cell for name, cell in zip(header, cells, strict=True) if name}
            yield orjson.dumps(fields, default=_other, option=orjson.OPT_APPEND_NEWLINE)
            continue
        yield b"\n"
        if any(cell is not None for cell in cells):
            header = ["" if cell is None else str(cell).strip() for cell in cells]
            refuse_twice(path, header)


def _parquet(path: Path, plain: Path) -> Iterator[bytes]:
    """Yield the rows of a Parquet file; one that cannot be shown becomes a line that is no JSON."""
    import orjson
    import pyarrow
    from pyarrow.parquet import ParquetFile

    broken = (ValueError, ArithmeticError, LookupError, TypeError)  # text that is none, a date beyond all calendars

    def lines(batch: Any) -> list[bytes]:
        try:
            return [orjson.dumps(row, default=_other, option=orjson.OPT_APPEND_NEWLINE) for row in batch.to_pylist()]
        except broken:
            if len(batch) == 1:
                return [b"\xff\n"]
            return [line for at in range(len(batch)) for line in lines(batch.slice(at, 1))]

    try:
        with open(plain, "rb") as file:
            table = ParquetFile(file, pre_buffer=False, page_checksum_verification=True)
            refuse_twice(path, table.schema_arrow.names)
            for batch in table.iter_batches(ROWS, use_threads=False):
                yield from lines(batch)
    except (*broken, pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        remedy = "copy it again from its source"
        raise DataError(f"{path}: cannot be read as Parquet ({_reason(error)})", remedy) from None


def _reason(error: Exception) -> str:
    """Return what a library says of a file, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
