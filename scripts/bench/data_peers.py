#!/usr/bin/env python3
"""The data stage's peers on the part of the work that all can do: `data_peers.py PEER FILE FOLDER`.

Each reads the CSV file, leaves out rows with a wrong number of fields or without a question or an answer, brings both
into NFC with line feeds for line ends and without blanks around them, drops rows of equal question and answer, holds
out a tenth of the questions by their hash, and writes train.jsonl and eval.jsonl. It prints how many rows it left out
as unusable. DuckDB's trim() takes off what it is told to: the blanks of ASCII, which are all that the file has there.
"""

from __future__ import annotations

import csv
import gc
import json
import sys
import unicodedata
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

ONE_OF = 10  # questions held out: one of so many
COLUMNS = ("id", "question", "answer")


def clean(text: str) -> str:
    """Normalise one text."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return (text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)).strip()


def row(question: str, answer: str) -> dict[str, str]:
    """Return a row as it is written."""
    return {"instruction": question, "input": "", "output": answer, "system": ""}


def standard(source: Path, out: Path) -> int:
    """Python's csv, orjson and a set of 64-bit keys, row by row in one process."""
    import orjson
    import xxhash

    gc.disable()
    rejected, seen = 0, set()
    with (
        open(source, encoding="utf-8", newline="", buffering=1 << 20) as file,
        open(out / "train.jsonl", "wb", buffering=1 << 20) as train,
        open(out / "eval.jsonl", "wb", buffering=1 << 20) as held,
    ):
        reader = csv.reader(file, strict=True)
        next(reader)
        for fields in reader:
            if len(fields) != 3 or not (question := clean(fields[1])) or not (answer := clean(fields[2])):
                rejected += 1
                continue
            line = orjson.dumps(row(question, answer), option=orjson.OPT_APPEND_NEWLINE)
            if (key := xxhash.xxh3_64_intdigest(line)) not in seen:
                seen.add(key)
                (train if xxhash.xxh3_64_intdigest(question.encode()) % ONE_OF else held).write(line)
    return rejected


def read_pandas(source: Path) -> tuple[Any, int]:
    """Return the file as a frame, and how many rows pandas left out of it: it only warns of them."""
    import pandas

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = pandas.read_csv(source, dtype=str, keep_default_na=False, on_bad_lines="warn", index_col=False)
    return frame, sum(str(warning.message).count("Skipping line") for warning in caught)


def pandas_rows(source: Path, out: Path) -> int:
    """Use pandas as it often is: iterrows() and json.dumps()."""
    frame, rejected = read_pandas(source)
    seen = set()
    with (
        open(out / "train.jsonl", "w", encoding="utf-8") as train,
        open(out / "eval.jsonl", "w", encoding="utf-8") as held,
    ):
        for _, fields in frame.iterrows():
            question, answer = clean(fields["question"]), clean(fields["answer"])
            if not question or not answer:
                rejected += 1
            elif (question, answer) not in seen:
                seen.add((question, answer))
                side = train if zlib.crc32(question.encode()) % ONE_OF else held
                side.write(json.dumps(row(question, answer), ensure_ascii=False) + "\n")
    return rejected


def pandas_columns(source: Path, out: Path) -> int:
    """Use pandas on whole columns."""
    import pandas

    frame, rejected = read_pandas(source)
    made = pandas.DataFrame(row(frame.pop("question"), frame.pop("answer")))
    for name in ("instruction", "output"):
        ends = made[name].str.replace("\r\n", "\n", regex=False).str.replace("\r", "\n", regex=False)
        made[name] = ends.str.normalize("NFC").str.strip()
    full = (made["instruction"] != "") & (made["output"] != "")
    rejected += int((~full).sum())
    made = made[full].drop_duplicates(["instruction", "output"])
    held = pandas.util.hash_pandas_object(made["instruction"], index=False) % ONE_OF == 0
    for name, part in (("train", made[~held]), ("eval", made[held])):
        part.to_json(out / f"{name}.jsonl", orient="records", lines=True, force_ascii=False)
    return rejected


def hugging_face(source: Path, out: Path) -> int:
    """Hugging Face's datasets: its CSV reader, one map() over batches that cleans and drops, to_json()."""
    import datasets
    import xxhash

    datasets.disable_progress_bars()
    seen: set[int] = set()
    empty = 0

    def cleaned(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        nonlocal empty
        questions, answers = [], []
        for question, answer in zip(map(clean, batch["question"]), map(clean, batch["answer"]), strict=True):
            if not question or not answer:
                empty += 1
            elif (key := xxhash.xxh3_64_intdigest(f"{question}\0{answer}".encode())) not in seen:
                seen.add(key)
                questions.append(question)
                answers.append(answer)
        empty_texts = [""] * len(questions)
        sides = [xxhash.xxh3_64_intdigest(question.encode()) % ONE_OF == 0 for question in questions]
        return {"instruction": questions, "input": empty_texts, "output": answers, "system": empty_texts, "held": sides}

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = datasets.load_dataset(
            "csv",
            data_files=str(source),
            split="train",
            cache_dir=str(out / "cache"),
            features=datasets.Features(dict.fromkeys(COLUMNS, datasets.Value("string"))),
            keep_default_na=False,
            on_bad_lines="warn",
            index_col=False,
        )
    rejected = sum(str(warning.message).count("Skipping line") for warning in caught)
    made = table.map(cleaned, batched=True, batch_size=10_000, remove_columns=list(COLUMNS), new_fingerprint="cleaned")
    held = made.with_format("numpy")["held"][:]
    made = made.remove_columns("held")
    for name, side in (("train", ~held), ("eval", held)):
        path = out / f"{name}.jsonl"
        made.select(side.nonzero()[0]).to_json(path, batch_size=10_000, lines=True, force_ascii=False)
    return rejected + empty


def duck(source: Path, out: Path) -> int:
    """DuckDB: a table of what read_csv() gives, grouped by question and answer, and COPY."""
    import duckdb

    def cleaned(name: str) -> str:
        ends = rf"replace(replace({name}, E'\r\n', E'\n'), E'\r', E'\n')"
        return rf"coalesce(trim(nfc_normalize({ends}), E' \t\n\r'), '')"

    base = duckdb.connect()
    base.execute("SET preserve_insertion_order = false")
    base.execute(
        f"CREATE TEMP TABLE kept AS SELECT question, answer, count(*) AS times"
        f" FROM (SELECT {cleaned('question')} AS question, {cleaned('answer')} AS answer FROM read_csv($file,"
        " header = true, auto_detect = false, delim = ',', quote = '\"', escape = '\"', new_line = '\\n',"
        " columns = {'id': 'VARCHAR', 'question': 'VARCHAR', 'answer': 'VARCHAR'}, ignore_errors = true,"
        " store_rejects = true)) GROUP BY ALL",
        {"file": str(source)},
    )
    for name, side in (("train", "<>"), ("eval", "=")):
        base.execute(
            "COPY (SELECT question AS instruction, '' AS input, answer AS output, '' AS system FROM kept"
            f" WHERE question <> '' AND answer <> '' AND hash(question) % {ONE_OF} {side} 0)"
            f" TO '{out / name}.jsonl' (FORMAT json)"
        )
    (ragged,) = base.execute("SELECT count(DISTINCT line) FROM reject_errors").fetchall()[0]
    (empty,) = base.execute("SELECT coalesce(sum(times), 0) FROM kept WHERE question = '' OR answer = ''").fetchall()[0]
    return int(ragged + empty)


def polars_table(source: Path) -> Any:
    """Return the cleaned rows as a plan, with an id in `bad` where a row cannot be used.

    A fourth column takes what a row has beyond three: truncate_ragged_lines alone would take such rows for good.
    """
    import polars

    def cleaned(name: str) -> Any:
        ends = polars.col(name).str.replace_all("\r\n", "\n", literal=True).str.replace_all("\r", "\n", literal=True)
        return ends.str.normalize("NFC").str.strip_chars()

    table = polars.scan_csv(
        source,
        schema=dict.fromkeys((*COLUMNS, "more"), polars.String),
        missing_columns="insert",
        truncate_ragged_lines=True,
    )
    made = table.with_columns(cleaned("question"), cleaned("answer"))
    full = polars.col("more").is_null() & (polars.col("question") != "") & (polars.col("answer") != "")
    bad = polars.when(full.fill_null(False)).then(None).otherwise("id").alias("bad")
    empty = polars.lit("")
    return made.select(
        polars.col("question").alias("instruction"),
        empty.alias("input"),
        polars.col("answer").alias("output"),
        empty.alias("system"),
        bad,
    )


def polars_collect(source: Path, out: Path) -> int:
    """Polars: all rows collected, then filtered, made unique and written."""
    import polars

    found = polars_table(source).collect()
    rows = found.filter(polars.col("bad").is_null()).drop("bad")
    rejected = found.height - rows.height
    del found
    rows = rows.unique(["instruction", "output"], keep="any")
    held = polars.col("instruction").hash() % ONE_OF == 0
    rows.filter(~held).write_ndjson(out / "train.jsonl")
    rows.filter(held).write_ndjson(out / "eval.jsonl")
    return rejected


def polars_streaming(source: Path, out: Path) -> int:
    """Polars' streaming engine: one plan from the file to three files, the third with the rows left out."""
    import polars

    held = polars.col("instruction").hash() % ONE_OF == 0
    side = polars.when(polars.col("bad").is_not_null()).then(2).when(held).then(1).otherwise(0)
    rows = polars_table(source).unique(["instruction", "output", "bad"], keep="any").with_columns(side=side).drop("bad")
    names = ("train.jsonl", "eval.jsonl", "rejected.jsonl")
    files = polars.PartitionBy(
        out,
        key="side",
        include_key=False,
        approximate_bytes_per_file=None,
        file_path_provider=lambda part: names[part.partition_keys["side"][0]],
    )
    rows.sink_ndjson(files, engine="streaming")
    with open(out / names[2], "rb") as file:
        return sum(1 for _ in file)


PEERS: dict[str, Callable[[Path, Path], int]] = {
    "csv + orjson": standard,
    "pandas, rows": pandas_rows,
    "pandas, columns": pandas_columns,
    "datasets": hugging_face,
    "DuckDB": duck,
    "Polars": polars_collect,
    "Polars, streaming": polars_streaming,
}
IN_BENCH_ENV = ("DuckDB", "Polars", "Polars, streaming")  # the others run with .venv's Python


if __name__ == "__main__":
    print(PEERS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3])))
