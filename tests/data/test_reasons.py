"""Each reason for which a row is refused, with a row as one meets it; the other rows of its file are kept."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pytest
from test_sources import parquet, xlsx

from temper.data import process
from temper.data.options import Options
from temper.data.reasons import REASONS, Rejected


class Case(NamedTuple):
    """A file with one row that cannot be used."""

    reason: str
    name: str
    content: str | bytes
    line: int
    detail: str  # that it begins with
    kept: tuple[str, ...]  # the questions of the other rows
    row: str = ""  # that the excerpt of the row begins with
    settings: dict[str, Any] = {}  # noqa: RUF012


def talk(*said: tuple[str, Any]) -> str:
    """Return a line of a chat log."""
    row = {"messages": [{"role": role, "content": content} for role, content in said]}
    return json.dumps(row, ensure_ascii=False) + "\n"


GOOD = "退货运费由谁承担？,质量问题由我们承担运费。\n"
BEFORE = "问题,答案\n几天内可以退货？,签收后七天内。\n"
KEPT = ("几天内可以退货？", "退货运费由谁承担？")
ENGLISH = "question,answer\nHow long is the warranty?,Two years.\n"
LINE = '{"question": "How long is the warranty?", "answer": "Two years."}\n'
WARRANTY = ("How long is the warranty?",)
CHAT = talk(("user", "How long is the warranty?"), ("assistant", "Two years."))
DPO = '{"prompt": "怎么退货？", "chosen": "在订单页点“申请退货”。", "rejected": "不知道。"}\n'
CODE = "Use a list comprehension:\n\n```python\n{}\n```\n"
TEXT = b"Is it in stock?Caf\xe9?"  # the second row's is not UTF-8
SHARED = {"conversations": [{"from": "human", "value": WARRANTY[0]}, {"from": "gpt", "value": "Two years."}]}
BROKEN = pyarrow.StringArray.from_buffers(
    2, pyarrow.py_buffer(b"".join(end.to_bytes(4, "little") for end in (0, 15, 20))), pyarrow.py_buffer(TEXT)
)

CASES = [
    # A quote inside a quoted field that is not written twice
    Case("not-csv", "工单.csv", BEFORE + '发错货了怎么办？,"客服回复"请寄回",运费到付。"\n' + GOOD, 3,
         "',' expected after '\"'", KEPT),
    Case("not-csv", "tickets.tsv", ENGLISH.replace(",", "\t") + '"24" screen?\t"Yes, 24 inches."\n', 3,
         "'\t' expected after '\"'", WARRANTY),
    # An inch sign or a quote at the head of a field, never closed
    Case("unclosed-quote", "工单.csv", BEFORE + '屏幕多大？,"24 英寸\n' + GOOD, 3, "a quote is opened", KEPT),
    Case("unclosed-quote", "tickets.tsv", ENGLISH.replace(",", "\t") + '"Too small?\tTry size L.\n', 3,
         "a quote is opened and never closed", WARRANTY),
    # A comma in an answer that is not quoted; a line cut short
    Case("field-count", "faq.csv", ENGLISH + "Do you ship abroad?,Yes, to 30 countries.\n", 3,
         "3 fields where the header has 2", WARRANTY),
    Case("field-count", "问答.tsv", (BEFORE + "怎么开发票？\n" + GOOD).replace(",", "\t"), 3,
         "1 fields where the header has 2", KEPT),
    Case("field-count", "old-mac.csv", (BEFORE + "怎么开发票？,在订单页申请,电子发票\n" + GOOD).replace("\n", "\r"), 3,
         "3 fields where the header has 2", KEPT),
    # A log cut in the middle of a line, Python's quotes, a comma too many
    Case("not-json", "log.jsonl", LINE + '{"question": "Is it waterproof?", "answ', 2, "", WARRANTY,
         '{"question": "Is it waterproof?", "answ'),
    Case("not-json", "log.jsonl", "{'question': '有货吗？', 'answer': '有'}\n" + LINE, 1, "", WARRANTY,
         "{'question': '有货吗？', 'answer': '有'}"),
    Case("not-json", "log.ndjson", LINE + '{"question": "有货吗？", "answer": "有",}\n', 2, "", WARRANTY,
         '{"question": "有货'),
    Case("not-json", "faq.json", f'[{LINE}, {{"question": "a\nb", "answer": "c"}}]', 2, "", WARRANTY,
         '{"question": "a'),
    # Rows that are lists, and the text of a header
    Case("not-an-object", "rows.jsonl", '["question", "answer"]\n' + LINE, 1, "not an object with fields", WARRANTY,
         '["question", "answer"]'),
    Case("not-an-object", "faq.json", f'["常见问题", {LINE}]', 1, "not an object", WARRANTY, '"常见问题"'),
    Case("not-an-object", "log.jsonl", LINE + "null\n", 2, "not an object", WARRANTY, "null"),
    # Bytes of another encoding, a character cut in two, one that was lost earlier
    Case("encoding", "工单.csv", BEFORE.encode() + b"Caf\xe9 included?,Yes\n" + GOOD.encode(), 3,
         "half of a character, or bytes that are not in the file's encoding", KEPT, '{"问题": "Caf?'),
    Case("encoding", "工单.csv", BEFORE.encode("gbk") + b"\xb7\xa2\xc6\xb1\xd4\xf5\xc3\xb4\xbf,\xd4\xda\xcf\xdf\n"
         + GOOD.encode("gbk"), 3, "half of a character", KEPT, '{"问题": "发票怎么???"'),
    Case("encoding", "log.jsonl", LINE.encode() + '{"question": "有货'.encode() + b'\xe5", "answer": "x"}\n', 2,
         "bytes that are not in the file's encoding", WARRANTY, '{"question": "有货', {"encoding": "utf-8"}),
    Case("encoding", "log.jsonl", LINE + r'{"question": "Thanks \ud83d", "answer": "You are welcome."}' + "\n", 2,
         "half of a character", WARRANTY, '{"question": "Thanks ?"'),
    Case("encoding", "工单.csv", BEFORE + "快递到哪��了？,在途。\n" + GOOD, 3,
         "holds U+FFFD, the mark of a character that was lost earlier", KEPT, '{"问题": "快递到哪'),
    Case("encoding", "faq.parquet", parquet({"question": BROKEN, "answer": ["Yes.", "No."]}), 2,
         "bytes that are not", ("Is it in stock?",)),
    # Truth values, lists and objects where text belongs
    Case("wrong-type", "log.jsonl", LINE + '{"question": "Is it waterproof?", "answer": true}\n', 2,
         "the answer is true or false, not text", WARRANTY, '{"question": "Is it waterproof?", "answer": true}'),
    Case("wrong-type", "log.jsonl", LINE + '{"question": ["颜色？", "尺码？"], "answer": "见详情页"}\n', 2,
         "the question is a list, not text", WARRANTY, '{"question": ["颜色？"'),
    Case("wrong-type", "faq.xlsx", xlsx({1: ["question", "answer"], 2: ["Is it new?", '<c t="b"><v>1</v></c>'],
                                         3: ["How long is the warranty?", "Two years."]}), 2,
         "the answer is true or false, not text", WARRANTY, '{"question": "Is it new?"'),
    Case("wrong-type", "chat.jsonl", CHAT + talk(("user", [{"type": "text", "text": "看图"}]), ("assistant", "好看")),
         2, "the message is a list, not text", WARRANTY, '{"messages": [{"role": "user"'),
    Case("wrong-type", "alpaca.csv", "instruction,output,history\nHow long is the warranty?,2 years,[]\na,b,above\n", 3,
         "the history is text that is no JSON list", WARRANTY, '{"instruction": "a"'),
    # Empty cells, and what looks empty
    Case("empty-question", "工单.csv", BEFORE + "　,请提供订单号。\n" + GOOD, 3, "the question is empty", KEPT,
         '{"问题": "　", "答案": "请提供订单号。"}'),
    Case("empty-question", "工单.csv", BEFORE + "<p>&nbsp;</p>,请提供订单号。\n" + GOOD, 3,
         "the question is empty", KEPT, '{"问题": "<p>'),
    Case("empty-question", "faq.xlsx", xlsx({1: ["question", "answer"], 4: ["How long is the warranty?", "Two years."],
                                             7: ["", "Please give your order number."]}), 7, "the question is empty",
         WARRANTY, '{"question": null'),
    Case("empty-question", "chat.jsonl", CHAT + '{"messages": []}\n', 2, "there are no messages", WARRANTY,
         '{"messages": []}'),
    Case("empty-answer", "工单.csv", BEFORE + "怎么开发票？,\n" + GOOD, 3, "the answer is empty", KEPT,
         '{"问题": "怎么开发票？", "答案": ""}'),
    Case("empty-answer", "log.jsonl", '{"question": "Is it waterproof?", "answer": null}\n' + LINE, 1,
         "the answer is empty", WARRANTY, '{"question": "Is it waterproof?"'),
    Case("empty-answer", "faq.parquet", parquet({"q": ["How long is the warranty?", "New?"], "a": ["2 years", None]}),
         2, "the answer is empty", WARRANTY, '{"q": "New?", "a": null}'),
    # A backspace, an escape sequence of a terminal, the control half of an old encoding
    Case("control-character", "工单.csv", BEFORE + "怎么开\b发票？,在订单页申请。\n" + GOOD, 3,
         "holds U+0008 at character 4", KEPT, '{"问题": "怎么开'),
    Case("control-character", "log.jsonl", LINE + r'{"question": "Help", "answer": "\u001b[1mType make\u001b[0m"}', 2,
         "holds U+001B at character 1", WARRANTY, '{"question": "Help"'),
    Case("control-character", "log.jsonl", LINE + r'{"question": "It\u0092s broken", "answer": "Send it in."}', 2,
         "holds U+0092 at character 3", WARRANTY, '{"question": "It'),
    # A whole mail thread pasted into a cell
    Case("too-long", "工单.csv", BEFORE + f"邮件全文,{'您好，' * 100}\n" + GOOD, 3,
         "300 characters, data.max_chars is 200", KEPT, '{"问题": "邮件全文"', {"max_chars": 200}),
    Case("too-long", "chat.jsonl", CHAT + talk(("user", "Hi"), ("assistant", "x" * 100_001)), 2,
         "100001 characters, data.max_chars is 100000", WARRANTY, '{"messages": [{"role": "user", "content": "Hi"'),
    # A log that begins with the greeting of the agent, or ends while the customer waits
    Case("role-order", "chat.jsonl", CHAT + talk(("assistant", "您好"), ("user", "没事"), ("assistant", "好的")), 2,
         "the roles are assistant, user, assistant", WARRANTY, '{"messages": [{"role": "assistant"'),
    Case("role-order", "chat.jsonl", talk(("user", "在吗？"), ("assistant", "在的"), ("user", "人呢")) + CHAT, 1,
         "the roles are user, assistant, user", WARRANTY, '{"messages": [{"role": "user"'),
    # Calls of tools, and speakers of one's own
    Case("unknown-role", "chat.jsonl", CHAT + talk(("user", "查订单"), ("tool", "在途"), ("assistant", "在路上")), 2,
         "the role 'tool' is not trained on", WARRANTY, '{"messages": [{"role": "user"'),
    Case("unknown-role", "share.json", json.dumps([SHARED, {"conversations": [{"from": "客户", "value": "在吗"}]}]), 2,
         "the role '客户' is not trained on", WARRANTY, '{"conversations": [{"from": "客户"'),
    # Code that was cut, or is of Python 2
    Case("code-syntax", "code.jsonl", LINE + json.dumps({"question": "Sum of squares?",
                                                         "answer": CODE.format("total = sum(n * n for n in rows")}), 2,
         "line 1 of the Python code: '(' was never closed", WARRANTY, '{"question": "Sum of squares?"'),
    Case("code-syntax", "code.csv", ENGLISH + 'Print it?,"' + CODE.format("rows = [1, 2]\nprint rows") + '"\n', 3,
         "line 2 of the Python code: Missing parentheses in call to 'print'", WARRANTY, '{"question": "Print it?"'),
    # Two answers of which none is better
    Case("no-preference", "dpo.jsonl", DPO + '{"prompt": "几天到？", "chosen": "三天。", "rejected": " 三天。"}\n', 2,
         "chosen and rejected answer are the same", ("怎么退货？",), '{"prompt": "几天到？"'),
    # Personal data, where it is to be dropped
    Case("personal-data", "工单.csv", BEFORE + "我的手机号 13912345678 收不到验证码,请换个网络再试。\n" + GOOD, 3,
         "holds mobile", KEPT, "", {"personal": "drop"}),
    Case("personal-data", "chat.jsonl", CHAT + talk(("user", "My ID is 11010519491231002X"), ("assistant", "Thanks")),
         2, "holds cn_id", WARRANTY, "", {"personal": "drop"}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[f"{case.reason}-{case.name}" for case in CASES])
def test_a_row_that_cannot_be_used_is_set_aside_with_its_reason(tmp_path: Path, case: Case) -> None:
    """rejected.jsonl tells file, line, reason, detail, remedy and the row; all other rows of the file are kept."""
    content = case.content if isinstance(case.content, bytes) else case.content.encode()
    (tmp_path / case.name).write_bytes(content)
    options = Options(**{"eval_share": 0, "max_rejected": 1, **case.settings})
    process.process([tmp_path / case.name], tmp_path / "out", options)
    lines = (tmp_path / "out" / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    (row,) = map(json.loads, lines)
    assert list(row) == ["file", "line", "reason", "detail", "remedy", "row"]
    assert (row["file"], row["line"], row["reason"]) == (case.name, case.line, case.reason)
    assert row["detail"].startswith(case.detail) and row["detail"]
    assert row["remedy"] == REASONS[case.reason].remedy
    assert row["row"].startswith(case.row) and len(row["row"]) <= 200
    if case.reason == "personal-data":
        assert "[MOBILE]" in row["row"] or "[CN_ID]" in row["row"]
    train = (tmp_path / "out" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line)["instruction"] for line in train) == sorted(case.kept)
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    (counted,) = report["reasons"]
    assert counted == {
        "reason": case.reason,
        "text": REASONS[case.reason].text,
        "remedy": REASONS[case.reason].remedy,
        "count": 1,
        "first": [{"file": case.name, "line": case.line}],
    }
    assert html.escape(REASONS[case.reason].text) in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_every_reason_is_tested() -> None:
    """No reason is without a row that shows it, and no row shows a reason that does not exist."""
    assert {case.reason for case in CASES} == REASONS.keys()


@pytest.mark.parametrize("code", REASONS)
def test_a_reason_says_what_is_wrong_and_what_to_do(code: str) -> None:
    """Code, sentence and remedy are one short line each; a refusal without a detail says the sentence."""
    text, remedy = REASONS[code]
    for words in (code, text, remedy):
        assert 0 < len(words) < 80 and "\n" not in words and not words.endswith(".")
    assert code == code.lower() and " " not in code
    assert Rejected(code).detail == text and Rejected(code, "more").detail == "more"


def test_many_bad_rows_are_each_set_aside(tmp_path: Path) -> None:
    """Thousands of bad rows of several kinds, between good ones, are each listed with their line, in order."""
    bad = ["only one field\n", "a,b,c\n", ",answer\n", "question,\n", '"x"y,z\n', "bell\a,rings\n"]
    lines = [line for n in range(500) for line in (*bad, f"question {n},answer {n}\n")]
    (tmp_path / "r.csv").write_text("question,answer\n" + "".join(lines))
    options = Options(eval_share=0, max_rejected=1)
    assert process.process([tmp_path / "r.csv"], tmp_path / "out", options).startswith("3500 rows = 500 to train on")
    found = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    order = ["field-count", "field-count", "empty-question", "empty-answer", "not-csv", "control-character"]
    assert [(row["line"], row["reason"]) for row in found] == [
        (7 * n + place + 2, reason) for n in range(500) for place, reason in enumerate(order)
    ]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {item["reason"]: item["count"] for item in report["reasons"]} == {
        "field-count": 1000, **dict.fromkeys(order[2:], 500)
    }  # fmt: skip
    assert [len(item["first"]) for item in report["reasons"]] == [3] * 5
