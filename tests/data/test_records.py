"""Raw rows as dictionaries and data frames, for notebooks and estimates."""

from __future__ import annotations

from pathlib import Path

import pytest

from temper.data import records

TABLE = 'question,answer\n几天内可以退货？,二十一天\n"How long, exactly?","2 <b>years</b>"\ncafe\u0301?,yes\n'
ROWS = [("几天内可以退货？", "二十一天"), ("How long, exactly?", "2 <b>years</b>"), ("cafe\u0301?", "yes")]


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "utf-16"])
def test_a_table_is_read_as_text(tmp_path: Path, encoding: str) -> None:
    """Plain, quoted and odd rows come as text under their columns, in any encoding, also as a data frame."""
    (tmp_path / "r.csv").write_bytes(TABLE.encode(encoding))
    expected = [{"question": question, "answer": answer} for question, answer in ROWS]
    assert list(records.read(tmp_path / "r.csv")) == expected
    assert records.frame(tmp_path / "r.csv").to_dict("records") == expected


def test_a_frame_is_cleaned_as_files_are(tmp_path: Path) -> None:
    """A data frame becomes rows to train on, rows held out, rejected and merged ones, with the account of a file."""
    (tmp_path / "r.csv").write_text(TABLE + "no answer,\n几天内可以退货？,二十一天\n", encoding="utf-8")
    cleaned = records.clean(records.frame(tmp_path / "r.csv"))
    kept = {*cleaned.train.get("output", []), *cleaned.eval.get("output", [])}
    assert kept == {"二十一天", "2 years", "yes"}
    assert list(cleaned.rejected["reason"]) == ["empty-answer"]
    assert list(cleaned.duplicates["kind"]) == ["exact"]
    assert cleaned.report["read"] == 5 == len(cleaned.train) + len(cleaned.eval) + 2
