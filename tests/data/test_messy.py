"""The messy files of tests/fixtures/messy, each with the account the data stage must give of it, counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from temper.data import process
from temper.data.options import Options

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "messy"


class Account(NamedTuple):
    """What becomes of a file's rows."""

    read: int
    kept: int
    merged: dict[str, str]  # each row merged into another: its place and how; near | near: one of two places
    rejected: dict[str, str]  # each row that cannot be used: its place and why
    conflicts: int = 0  # questions with several answers
    says: tuple[tuple[str, str], ...] = ()  # some of the questions and answers kept, as they are written
    settings: dict[str, Any] = {}  # noqa: RUF012


# fmt: off
ACCOUNTS = {
    # Excel's "CSV" in Chinese: GBK, CRLF, commas to the end of the widest row, and rows of commas alone.
    "excel-gbk.csv": Account(
        read=8, kept=4, merged={"6": "exact"},
        rejected={"7": "empty-answer", "8": "empty-question", "9": "empty-question"},
        says=(("怎么开发票？", '在订单页点"申请开票"，当天开出。'), ("L9 台灯能调光吗？", "可以，分五档亮度。")),
    ),
    # Excel's "Unicode text": UTF-16, tabs, a cell of two lines (4 and 5), a remark beside the table.
    "excel-utf16.tsv": Account(
        read=5, kept=4, merged={}, rejected={"6": "field-count"},
        says=(("Does it come with a \"Type G\" plug?", "Yes, in the box."),
              ("Where is my invoice?", "Open the order,\nthen choose Invoice.")),
    ),
    # A ticket system's export: HTML around the text, entities in it; code between backticks and a < b stay.
    "tickets-html.csv": Account(
        read=7, kept=5, merged={"6": "exact"}, rejected={"5": "empty-question"},
        says=(("How long does a refund take?", "Three to five working days.\nYou get an e-mail."),
              ("Is the lamp 40 cm high?", "Yes – 40 cm."),
              ("包装拆了还能退吗？", "未使用：可以\n已使用：不可以"),
              ("Why does my shop show `<b>` in titles?", "Your theme escapes it to `&lt;b&gt;`; turn that off."),
              ("Is 3 < 5 & 7 > 6?", "Yes, both.")),
    ),
    # A chat system's log: wrong roles and orders, calls of tools, a line cut short, an empty line (3).
    "chat-logs.jsonl": Account(
        read=12, kept=3, merged={"10": "exact"},
        rejected={"4": "role-order", "5": "unknown-role", "6": "role-order", "7": "empty-answer", "8": "not-json",
                  "9": "not-an-object", "11": "unknown-role", "13": "wrong-type"},
        says=(("L9 台灯有货吗？", "有货，今天下单明天发。"), ("在吗？\n水壶漏水怎么办？", "请寄回，我们免费换新。")),
    ),
    # Quotes inside fields: good ones, one not doubled (4), one never closed (10), one that is closed only by a quote
    # two lines further on (5): what stands between, "Colour?" and "Weight?", is lost with it.
    "quotes.csv": Account(
        read=8, kept=5, merged={}, rejected={"4": "not-csv", "5": "not-csv", "10": "unclosed-quote"},
        says=(('What does "sealed" mean?', "It was never opened."), ('He said "no", why?', "Ask him again."),
              ('Is it "new"?', "Yes."), ("Handle?", "Steel")),
    ),
    # Full-width and zero-width spaces, decomposed accents, full-width letters: the same rows over and over.
    "spaces-and-accents.csv": Account(
        read=9, kept=4, merged={"3": "exact", "5": "exact", "7": "exact", "9 | 10": "near"},
        rejected={"8": "empty-question"},
        says=(("保修 多久？", "两年"), ("Où est le café à filtre ?", "À droite du thé."),
              ("怎么退货？", "在订单页申请。")),
    ),
    # A workbook: notes on the first sheet, numbers, a date, TRUE, #N/A, an empty row (5).
    "workbook.xlsx": Account(
        read=6, kept=3, merged={"9": "exact"}, rejected={"6": "wrong-type", "8": "empty-answer"},
        says=(("X3 水壶多少钱？", "299"), ("容量多大？", "1.7 升"), ("功率是几瓦？", "1850.5")),
    ),
    # Conversations in a column of lists, one of them missing, one that ends with a question.
    "conversations.parquet": Account(
        read=5, kept=2, merged={"5": "exact"}, rejected={"2": "empty-question", "4": "role-order"},
        says=(("My kettle leaks.\nAt the lid.", "Order seal S-3."), ("Is it steel?", "Yes.")),
    ),
    # One object with the list inside, packed: near-duplicates (1, 2), two answers to one question (3, 6).
    "faq.json.gz": Account(
        read=6, kept=3, merged={"1 | 2": "near"}, rejected={"4": "empty-answer", "5": "not-an-object"}, conflicts=1,
        says=(("退货的运费由谁承担？", "质量问题由我们承担。"), ("退货的运费由谁承担？", "一律由买家承担。")),
    ),
    # Two shops' rows: GBK, Alpaca, two columns of other names; the same rows in two files, two answers to one question.
    "branches": Account(
        read=9, kept=6, merged={"south/old.tsv 2": "exact", "south/south.jsonl 1": "exact"},
        rejected={"south/south.jsonl 4": "empty-answer"}, conflicts=1,
        says=(("停车收费吗？", "前两小时免费。"), ("停车收费吗？", "每小时五元。"), ("有洗手间吗？", "有，在二楼。")),
    ),
    # Code: a bracket left open, Python 2, a prompt; shell, and wrong Python that is not said to be Python, stay.
    "code-rows.jsonl": Account(
        read=8, kept=4, merged={"7": "exact"}, rejected={"2": "code-syntax", "3": "code-syntax", "8": "code-syntax"},
        says=(("List files.", "```bash\nls -la | grep (\n```"),
              ("用 Python 生成加粗的 HTML。", '```py\nhtml = f"<b>{name}</b> &amp; more"\n```')),
    ),
    # Pairs: as text and as conversations, two equal answers, a missing one, two worse answers to one better.
    "preferences.jsonl": Account(
        read=6, kept=3, merged={"5": "exact"}, rejected={"2": "no-preference", "3": "empty-answer"},
        says=(("保修多久？", "整机两年。"), ("怎么退货？", "请在订单页点“申请退货”，我们上门取件。")),
    ),
    # Phone, ID and card numbers among room and order numbers; once masked, two rows are one.
    "personal.csv": Account(
        read=7, kept=6, merged={"6": "exact"}, rejected={}, settings={"personal": "mask"},
        says=(("我的手机 [MOBILE] 收不到短信", "请确认号码后重试。"), ("卡号 [BANK_CARD] 被扣了两次", "一到三天退回。"),
              ("身份证 [CN_ID] 填错了怎么改？", "在“我的资料”里改。"), ("客服邮箱是多少？", "care@yanqiao.example"),
              ("订单 202405170001234 到哪了？", "在途，明天到。")),
    ),
    # pandas' index in a column without a name.
    "with-index.csv": Account(
        read=4, kept=2, merged={"4": "exact"}, rejected={"5": "empty-answer"},
        says=(("How heavy is the X3 kettle?", "1.2 kg"), ("Is it loud?", "45 dB, like a fridge")),
    ),
    # A byte of Latin-1, characters lost in an earlier export, a backspace, the last character cut in two.
    "damaged.csv": Account(
        read=6, kept=2, merged={},
        rejected={"3": "encoding", "4": "encoding", "5": "control-character", "7": "encoding"},
        says=(("几天发货？", "48 小时内。"), ("噪音大吗？", "约 45 分贝。")),
    ),
}
# fmt: on


def made(name: str, out: Path, **settings: Any) -> dict[str, list[dict[str, Any]]]:
    """Process a file or folder; return the rows of each file written."""
    options = Options(**{"eval_share": 0, "max_rejected": 1, **ACCOUNTS[name].settings, **settings})
    process.process([FOLDER / name], out, options)
    return {
        path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        for path in out.glob("*.jsonl")
    }


def place(row: dict[str, Any], name: str) -> str:
    """Return a row's line, after its file in a folder."""
    return str(row["line"]) if row["file"] == name else f"{row['file']} {row['line']}"


def said(row: dict[str, Any]) -> tuple[str, str]:
    """Return what is asked in a row, and its last answer."""
    if "messages" not in row:
        return "\n".join(filter(None, (row["instruction"], row["input"]))), row["output"]
    asked = [turn["content"] for turn in row["messages"] if turn["role"] == "user"]
    return "\n".join(asked), row["messages"][-1]["content"]


@pytest.mark.parametrize("name", list(ACCOUNTS))
def test_each_messy_file_gives_its_account(tmp_path: Path, name: str) -> None:
    """Every row is kept, merged or refused as it was counted by hand, and what is kept reads as it should."""
    account = ACCOUNTS[name]
    rows = made(name, tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert {place(row, name): row["reason"] for row in rows["rejected"]} == account.rejected
    merged = {place(row, name): row["kind"] for row in rows["duplicates"]}
    either = {key: how for key, how in account.merged.items() if " | " in key}
    for key, how in either.items():
        assert [merged.pop(one, None) for one in key.split(" | ")].count(how) == 1
    assert merged == {key: how for key, how in account.merged.items() if key not in either}
    assert (report["read"], len(rows["train"])) == (account.read, account.kept)
    assert account.read == account.kept + len(account.merged) + len(account.rejected)
    assert len(rows["conflicts"]) == report["conflicts"]["questions"] == account.conflicts
    assert set(account.says) <= {said(row) for row in rows["train"]}


def test_every_messy_file_is_small_and_has_its_account() -> None:
    """No file is without its account, or larger than what is read at a glance; README.md has a line for each."""
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert {path.relative_to(FOLDER).parts[0] for path in files} == {*ACCOUNTS, "README.md"}
    assert max(path.stat().st_size for path in files) < 30_000
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [name for name in ACCOUNTS if f"`{name}`" not in readme] == []


def test_personal_data_of_the_corpus_is_refused_when_it_is_to_be_dropped(tmp_path: Path) -> None:
    """With data.personal: drop the rows that hold a phone, ID or card number are refused, and none of them is shown."""
    rows = made("personal.csv", tmp_path / "out", personal="drop")
    assert {row["line"]: row["detail"] for row in rows["rejected"]} == {
        2: "holds mobile", 3: "holds cn_id", 6: "holds mobile", 7: "holds bank_card"
    }  # fmt: skip
    written = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "out").iterdir())
    assert not [number for number in ("13800138000", "11010519491231002X", "4111 1111") if number in written]


def test_the_whole_corpus_is_one_dataset(tmp_path: Path) -> None:
    """All files but the pairs, read together, add up to their own accounts less what they have in common."""
    names = [name for name in ACCOUNTS if name not in ("preferences.jsonl", "personal.csv")]
    options = Options(eval_share=0.2, max_rejected=1)
    process.process([FOLDER / name for name in names], tmp_path / "out", options)
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["read"] == sum(ACCOUNTS[name].read for name in names)
    assert report["rejected"] == sum(len(ACCOUNTS[name].rejected) for name in names)
    assert report["train"] + report["eval"] + report["duplicates"] + report["rejected"] == report["read"]
    assert report["train"] and report["eval"]
    for row in map(json.loads, (tmp_path / "out" / "train.jsonl").read_text(encoding="utf-8").splitlines()):
        assert set(row) == {"messages"}  # some have several turns
