"""The raw rows of one file as dictionaries, and data frames in and out, for what is small enough to be looked at."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temper.data import chunks, process, shapes, sources
from temper.data.chunks import Reader, Table
from temper.data.options import Options
from temper.data.reasons import Rejected
from temper.errors import DataError

if TYPE_CHECKING:
    import pandas as pd


def _table(path: Path, spool: Path, encoding: str) -> tuple[Table, list[str], str]:
    source = sources.prepare(path.name, path, spool, encoding)
    start, line, header, there = process.head(source)
    size = source.plain.stat().st_size
    shape = shapes.Shape("columns", {})
    table = Table(0, path.name, str(source.plain), source.form, start, line, size, header, shape, False)
    return table, there, source.encoding


def describe(path: Path) -> tuple[str, list[str]]:
    """Return a file's encoding and the names of its columns; DataError when it has none."""
    with tempfile.TemporaryDirectory() as spool:
        _, there, encoding = _table(path, Path(spool), "auto")
    if not there or next(read(path), None) is None:
        raise DataError(f"{path}: has no readable row", "give a file with a header line and rows")
    return encoding, there


def read(path: Path, encoding: str = "auto") -> Iterator[dict[str, Any]]:
    """Yield each row of a file that can be read, by column; raise DataError as process.process does."""
    from temper.data import first

    with tempfile.TemporaryDirectory() as spool:
        table, _, _ = _table(path, Path(spool), encoding)
        begins = table.start
        for chunk in chunks.cut(table):
            reader = Reader(chunks.again(chunk, begins))
            if table.form == "jsonl":
                for _, data in reader.records():
                    try:
                        yield first.fields_of(data)
                    except Rejected:
                        continue
            else:
                for _, values in reader.values():
                    if not isinstance(values, Rejected):
                        yield dict(zip(table.header, values, strict=True))
            begins = reader.ended


@dataclass(frozen=True)
class Cleaned:
    """What the data stage makes of a data frame."""

    train: pd.DataFrame
    eval: pd.DataFrame
    rejected: pd.DataFrame  # file, line (1 for the first row), reason, detail, remedy, row
    duplicates: pd.DataFrame
    report: dict[str, Any]  # as report.json


def frame(path: Path, encoding: str = "auto") -> pd.DataFrame:
    """Return the raw rows of a file of any kind that the data stage reads, CSV to XLSX and Parquet, as a data frame."""
    import pandas as pd

    return pd.DataFrame(list(read(path, encoding)))


def clean(rows: pd.DataFrame, options: Options | None = None) -> Cleaned:
    """Do to a data frame what the data stage does to files; nothing is refused for having too many bad rows.

    Raises DataError when a column is missing or no row is left to train on.
    """
    import pandas as pd

    options = replace(options or Options(steps=Options().steps - {"report", "checks"}), max_rejected=1.0)
    with tempfile.TemporaryDirectory() as folder:
        raw, out = Path(folder) / "frame.jsonl", Path(folder) / "out"
        rows.to_json(raw, orient="records", lines=True, force_ascii=False, date_format="iso")
        process.process([raw], out, options)

        def made(name: str) -> pd.DataFrame:
            lines = (out / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")
            return pd.DataFrame([json.loads(line) for line in lines if line])

        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
        return Cleaned(made("train"), made("eval"), made("rejected"), made("duplicates"), report)
