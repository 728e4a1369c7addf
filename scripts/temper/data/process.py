"""The data stage: read, check, merge duplicates, split, write; every row is accounted for."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from temper.data import read
from temper.errors import DataError

FIELDS = ("instruction", "input", "output", "system")


@dataclass
class Account:
    """What became of the rows: rows in = kept + duplicates + rejected, always."""

    read: int = 0
    duplicates: int = 0
    rejected: list[dict[str, Any]] = field(default_factory=list)
    train: list[dict[str, Any]] = field(default_factory=list)
    eval: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)


def _clean(value: Any) -> str:
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def _convert(fields: dict[str, Any], columns: dict[str, Any], system: str | None) -> tuple[dict[str, str], str]:
    """Return the row as LLaMA Factory reads it, and what is wrong with it ("" if nothing)."""
    row = {name: _clean(fields.get(columns.get(name) or "")) for name in FIELDS}
    row["system"] = row["system"] or (system or "")
    empty = next((columns[name] for name in ("instruction", "output") if not row[name]), None)
    return row, f"empty {empty}" if empty else ""


def held_out(question: str, share: float) -> bool:
    """Say whether a question is for evaluation: by its own hash, so that adding rows never moves old ones."""
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") < share * 2**64


def _check_columns(path: Path, there: dict[str, None], columns: dict[str, Any]) -> None:
    missing = [f"{key} column {name!r}" for key, name in columns.items() if name and name not in there]
    if there and missing:
        flags = "data.columns (--instruction_col, --output_col)"
        raise DataError(
            f"{path}: there is no {' and no '.join(missing)}", f"the columns are: {', '.join(there)}; set {flags}"
        )


def collect(path: Path, columns: dict[str, Any], encoding: str, system: str | None, eval_share: float) -> Account:
    """Read the rows of `path` and sort each into train, eval, duplicate or rejected; write nothing."""
    account, seen = Account(), set()
    there: dict[str, None] = {}  # the columns of all rows: an object of JSON may leave some out
    for line, fields in read.rows(path, encoding):
        account.read += 1
        if isinstance(fields, str):
            account.rejected.append({"file": path.name, "line": line, "reason": fields})
            continue
        there |= dict.fromkeys(fields)
        row, wrong = _convert(fields, columns, system)
        if wrong:
            account.rejected.append({"file": path.name, "line": line, "reason": wrong})
        elif (identity := tuple(row.values())) in seen:
            account.duplicates += 1
        else:
            seen.add(identity)
            split = account.eval if held_out(row["instruction"], eval_share) else account.train
            split.append(row)
            rest = {k: v for k, v in fields.items() if k not in columns.values()}
            account.checks.append({**row, "split": "eval" if split is account.eval else "train", "columns": rest})
    _check_columns(path, there, columns)
    return account


def check(path: Path, account: Account, max_rejected: float) -> None:
    """Raise DataError when nothing is left to train on, or more than the share `max_rejected` is unusable."""
    reasons = Counter(item["reason"] for item in account.rejected).most_common(3)
    first = {
        reason: next(item["line"] for item in account.rejected if item["reason"] == reason) for reason, _ in reasons
    }
    listed = ", ".join(f"{count} x {reason} (first in line {first[reason]})" for reason, count in reasons)
    if len(account.rejected) > max_rejected * account.read:
        share = len(account.rejected) / account.read
        raise DataError(
            f"{path}: {len(account.rejected)} of {account.read} rows cannot be used ({share:.1%}): {listed}",
            f"correct them, or allow more than {max_rejected:.1%} with data.max_rejected (--max_rejected)",
        )
    if not account.train:
        raise DataError(
            f"{path}: no row is left to train on ({account.read} read)",
            "give more rows, or lower data.eval_share (--eval_share)",
        )


def _dataset_info() -> dict[str, Any]:
    columns = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
    return {name: {"file_name": f"{name}.jsonl", "columns": columns} for name in ("train", "eval")}


def _line(row: dict[str, Any]) -> str:
    """Return a row as one line, also for readers that take U+2028, U+2029 and U+0085 for line ends."""
    text = json.dumps(row, ensure_ascii=False)
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085") + "\n"


def write(account: Account, out: Path) -> None:
    """Write train.jsonl, eval.jsonl, checks.jsonl, rejected.jsonl, dataset_info.json and report.json."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("train", "eval", "checks", "rejected"):
        (out / f"{name}.jsonl").write_text("".join(map(_line, getattr(account, name))), encoding="utf-8")
    counts = {
        "read": account.read,
        "train": len(account.train),
        "eval": len(account.eval),
        "duplicates": account.duplicates,
        "rejected": len(account.rejected),
    }
    for name, value in (("dataset_info.json", _dataset_info()), ("report.json", counts)):
        (out / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def summary(out: Path) -> str:
    """Say in one line what became of the rows, from report.json."""
    n = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return (
        f"{n['read']} rows = {n['train']} to train on + {n['eval']} held out + {n['duplicates']} duplicates"
        f" + {n['rejected']} rejected"
    )


def process(
    path: Path,
    out: Path,
    columns: dict[str, Any],
    encoding: str = "utf-8",
    system: str | None = None,
    eval_share: float = 0.1,
    max_rejected: float = 0.005,
) -> str:
    """Turn the raw rows of `path` into what LLaMA Factory reads, in the folder `out`; return a one-line account.

    `columns` names the column for "instruction" and "output", and optionally "input" and "system".
    Raises DataError for a file that cannot be read, lacks a column, or has too many unusable rows.
    """
    account = collect(path, columns, encoding, system, eval_share)
    check(path, account, max_rejected)
    write(account, out)
    return summary(out)
