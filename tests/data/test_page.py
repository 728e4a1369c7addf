"""The data stage's page: every number of the account, in two languages, and nothing from the data that acts."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from temper.data.page import ZH, page
from temper.data.reasons import REASONS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "</style></title><script>alert(1)</script><img src=x onerror=x>\" onload='x' {{ 7 * 7 }} \u202egnp.exe\x00"
LONG = "长" * 400

FULL: dict[str, Any] = {
    "read": 12480,
    "train": 10437,
    "eval": 1159,
    "duplicates": 836,
    "rejected": 48,
    "duplicates_by": {"exact": 512, "near": 263, "across_split": 61},
    "max_rejected": 0.005,
    "files": [
        {
            "file": "客服记录-2024.csv", "kind": "csv", "compression": "", "encoding": "gb18030", "shape": "columns",
            "columns": {"instruction": "问题", "output": "答案"}, "rows": 8112, "rejected": 31, "eval": False,
        },
        {
            "file": "chats.jsonl.gz", "kind": "jsonl", "compression": "gzip", "encoding": "utf-8", "shape": "sharegpt",
            "columns": {"messages": "conversations"}, "rows": 3204, "rejected": 17, "eval": False,
        },
        {
            "file": "held-out.xlsx", "kind": "xlsx", "compression": "", "encoding": "", "shape": "columns",
            "columns": {"instruction": "question", "output": "answer", "system": None}, "rows": 1164, "rejected": 0,
            "eval": True,
        },
    ],
    "reasons": [
        {
            "reason": "empty-answer", "text": "the answer is empty", "remedy": "fill it in or delete the row",
            "count": 29, "first": [{"file": "客服记录-2024.csv", "line": line} for line in (118, 1204, 3377)],
        },
        {
            "reason": "role-order", "text": "the speakers do not take turns",
            "remedy": "user and assistant must alternate, from a user to an assistant",
            "count": 17, "first": [{"file": "chats.jsonl.gz", "line": line} for line in (51, 52, 940)],
        },
        {
            "reason": "not-in-the-list", "text": "something new", "remedy": "ask", "count": 2,
            "first": [{"file": "客服记录-2024.csv", "line": 8001}],
        },
    ],
    "normalised": {"unicode": 14, "line_ends": 3204, "full_width_space": 87, "html": 233, "blanks": 1450},
    "personal_data": {
        "action": "mask", "rows": 37,
        "kinds": {"email": 12, "mobile": 22, "cn_id": 2, "bank_card": 1, "ip": 0, "api_key": 0},
        "examples": [
            {"kind": "mobile", "file": "客服记录-2024.csv", "line": 77, "text": "…请拨打 [手机号] 联系仓库，备注订单…"},
            {"kind": "email", "file": "chats.jsonl.gz", "line": 12, "text": "…write to [e-mail] and name the order…"},
        ],
    },
    "conflicts": {
        "questions": 9,
        "examples": [
            {"question": "保修多久？", "answers": ["整机保修两年，电池保修一年。", "保修十八个月。"]},
            {"question": "How long does a refund take?", "answers": ["Five working days.", "Up to ten working days."]},
        ],
    },
    "near_duplicates": {
        "threshold": 0.85,
        "examples": [
            {"kept": "签收后几天内可以退货？", "left_out": "签收之后几天内可以退货呢？", "likeness": 0.93},
            {"kept": "How do I descale the K17?", "left_out": "How do I descale a K17", "likeness": 0.911},
        ],
    },
    "split": {"eval_share": 0.1, "given": False},
    "characters": {
        "question": [[8, 310], [16, 4120], [32, 5230], [64, 1510], [128, 380], [256, 46]],
        "answer": [
            [8, 40], [16, 460], [32, 1980], [64, 4470],
            [128, 3120], [256, 1190], [512, 280], [1024, 41], [4096, 15],
        ],
    },
    "tokens": {
        "model": "smollm2-135m",
        "cutoff_len": 1024,
        "train": {
            "rows": 10437, "sum": 1523802, "mean": 146.0, "median": 118, "p95": 402, "max": 3911, "truncated": 23,
        },
        "eval": {"rows": 1159, "sum": 168055, "mean": 145.1, "median": 117, "p95": 398, "max": 1190, "truncated": 2},
        "histogram": [
            [32, 212, 20], [64, 1630, 190], [128, 4105, 455], [256, 3301, 371], [512, 980, 101], [1024, 186, 20],
            [2048, 19, 2], [4096, 4, 0],
        ],
        "longest": [
            {"tokens": 3911, "question": "请把下面这份服务协议改写成客户能看懂的说明：" + LONG, "split": "train"},
            {"tokens": 2870, "question": "Summarise this thread of 41 messages", "split": "train"},
            {"tokens": 1190, "question": "写一份完整的安装步骤", "split": "eval"},
        ],
    },
    "examples": [
        {"split": "train", "instruction": "人工客服几点上班？", "output": "每天8:30至21:30在线。"},
        {"split": "train", "instruction": "What are your hours?", "output": "Every day from 8:30 to 21:30."},
        {"split": "eval", "instruction": "怎么以旧换新？", "output": "第一步：选择“以旧换新”。\n第二步：填写型号。"},
        {"split": "train", "instruction": "Can I change the address?", "output": "Yes, until the parcel leaves."},
    ],
}  # fmt: skip
MINIMAL: dict[str, Any] = {
    "read": 1,
    "train": 1,
    "eval": 0,
    "duplicates": 0,
    "rejected": 0,
    "duplicates_by": {"exact": 0, "near": 0, "across_split": 0},
    "max_rejected": 0,
    "files": [{**FULL["files"][1], "file": "rows.json", "rows": 1, "rejected": 0, "columns": {}, "compression": ""}],
    "reasons": [],
    "normalised": None,
    "personal_data": None,
    "conflicts": {"questions": 0, "examples": []},
    "near_duplicates": None,
    "split": {"eval_share": 0, "given": False},
    "characters": {"question": [[8, 1]], "answer": [[0, 0], [64, 1]]},
    "tokens": None,
    "examples": [],
}
HUGE = {**FULL, "read": 123456789, "train": 111111111, "eval": 11111111, "duplicates": 1234564, "rejected": 3}


class Elements(HTMLParser):
    """What a browser would make of a page: elements with their attributes, and the text outside style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep an element."""
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        """Keep text."""
        if self.tags[-1:] != ["style"]:
            self.text.append(data)


def hostile(value: Any) -> Any:
    """Return the value with hostile text for every text a file can bring."""
    if isinstance(value, dict):
        fixed = ("kind", "compression", "encoding", "shape", "reason", "action", "split")
        return {key: item if key in fixed and isinstance(item, str) else hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return HOSTILE + value if isinstance(value, str) else value


@pytest.mark.parametrize("report", [FULL, MINIMAL])
def test_the_account_is_on_the_page(report: dict[str, Any]) -> None:
    """Every number of the account is on the page, and the same report gives the same bytes."""
    html = page(report)
    text = "".join(Elements(html).text)
    for name in ("read", "train", "eval", "duplicates", "rejected"):
        assert f"{report[name]:,}" in text
    assert html == page(copy.deepcopy(report))
    assert html.encode()


def test_what_else_is_on_the_page() -> None:
    """Reasons with remedies and places, files, both languages, the truncated share, and an ellipsis for the rest."""
    text = " ".join(Elements(page(FULL)).text)
    for wanted in (
        "the answer is empty", "回答为空", "fill it in or delete the row", "1204", "something new", "gb18030", "gzip",
        "3,204", "2,870", "0.93", "保修十八个月。", "Five working days.", "402", "23", "0.2%", "smollm2-135m", "1,024",
    ):  # fmt: skip
        assert wanted in text
    assert "长…" in text
    assert LONG not in text


@pytest.mark.parametrize("report", [FULL, MINIMAL])
def test_both_languages(report: dict[str, Any]) -> None:
    """Each text comes in both languages; the page opens in Chinese when an example row holds Chinese."""
    html = page(report)
    spans = re.findall(r'<span lang="(..)">', html)
    assert spans.count("en") == spans.count("zh") > 30
    first = "zh" if report is FULL else "en"
    assert f'<html lang="{first}">' in html
    assert f'id="{first}" checked' in html
    assert html.count(" checked>") == 1


def test_every_reason_has_its_chinese() -> None:
    """No reason is shown to Chinese readers in English only."""
    assert ZH.keys() == REASONS.keys()


def test_steps_that_are_off_say_so() -> None:
    """A step that did not run is named as such, and not as a clean result."""
    text = " ".join(Elements(page(MINIMAL)).text)
    for line in (
        "Switched off: the text is as it came.", "Switched off: nothing was searched for.", "Tokens were not counted",
        "The search for near-duplicates is switched off.", "No row was rejected.", "No row is held out",
        "Not checked: 3.", "未检查 3 项",
    ):  # fmt: skip
        assert line in text


def test_what_to_look_at() -> None:
    """More rejected rows than allowed, truncated rows, personal data left in and conflicts are pointed out."""
    assert page(FULL).count('<li class="look">') == 2
    worse = {**FULL, "max_rejected": 0.001, "eval": 0, "personal_data": {**FULL["personal_data"], "action": "report"}}
    assert page(worse).count('<li class="look">') == 5
    assert "≠" in page(worse)
    assert "≠" not in page(FULL)


@pytest.mark.parametrize("report", [FULL, MINIMAL])
def test_nothing_is_fetched(report: dict[str, Any]) -> None:
    """The page has no script, no address and no link but to its own sections, which exist."""
    html = page(report)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", html)
    found = Elements(html)
    assert not {"script", "link", "img", "iframe", "object", "form", "base"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name == "src" or name.startswith("on")]
    ids = [value for name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value for name, value in found.attributes if name == "href"} <= {f"#{name}" for name in ids}
    assert "default-src 'none'" in html


def test_hostile_text_is_inert() -> None:
    """Text from rows, file names and columns adds no element and no attribute, and turns no text around."""
    benign, bad = Elements(page(FULL)), Elements(page(hostile(FULL)))
    assert bad.tags == benign.tags
    assert [name for name, _ in bad.attributes] == [name for name, _ in benign.attributes]
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00]", page(hostile(FULL)))
    text = "".join(bad.text)
    assert "<script>alert(1)</script>" in text
    assert "{{ 7 * 7 }}" in text
    assert r"\u202egnp.exe\u0000" in text


@pytest.mark.parametrize("bounds", [[[0, 3], [1, 1]], [[100, 5], [5000, 1]], [[2**17, 1]], [[16, 0]]])
def test_odd_histograms(bounds: list[list[int]]) -> None:
    """Gaps, empty bins and a cutoff far from all rows are drawn within the picture."""
    report = copy.deepcopy(FULL)
    report["tokens"]["histogram"] = [[bound, rows, 0] for bound, rows in bounds]
    report["tokens"]["eval"] = None
    report["tokens"]["longest"] = []
    report["characters"] = {"question": bounds, "answer": []}
    values = re.findall(r'[xy12]="(-?[\d.]+)%"', page(report))
    assert all(0 <= float(value) <= 100.1 for value in values)


# Opens the page in a frame of a given width, and says what a reader of either language sees there.
FRAME = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe style="border:0;width:%dpx;height:900px" srcdoc="%s"></iframe><pre id="seen"></pre><script>
onload = () => {
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement
  const seen = {width: root.clientWidth, needed: root.scrollWidth}
  const wide = part => part.getBoundingClientRect().right > root.clientWidth + 1
  seen.wide = [...page.querySelectorAll("body *")].filter(wide).map(part => part.outerHTML.slice(0, 80))
  for (const language of ["en", "zh"]) {
    page.getElementById(language).click()
    seen[language] = page.querySelector("main").innerText
  }
  document.getElementById("seen").textContent = JSON.stringify(seen)
}
</script>"""


def browse(tmp_path: Path, width: int, html: str) -> tuple[dict[str, Any], bytes]:
    """Open html at this width in Chromium; return what is seen there and a picture of it."""
    if not CHROMIUM:
        if os.environ.get("CI"):
            pytest.fail("CI must have chromium", pytrace=False)
        pytest.skip("not installed: chromium")
    (tmp_path / "frame.html").write_text(FRAME % (width, escape(html)), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={max(width, 500)},900"]
    command += ["--dump-dom", f"--screenshot={tmp_path / 'shot.png'}", (tmp_path / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    seen = re.search('<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert seen, done.stderr
    return json.loads(unescape(seen[1])), (tmp_path / "shot.png").read_bytes()


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("report", [FULL, MINIMAL, hostile(FULL), HUGE], ids=["full", "minimal", "hostile", "huge"])
def test_in_a_browser(tmp_path: Path, report: dict[str, Any], width: int) -> None:
    """Nothing is wider than a desktop or a phone, and the switch shows one language, without any script of the page."""
    seen, picture = browse(tmp_path, width, page(report))
    assert seen["width"] == seen["needed"] == width
    assert seen["wide"] == []
    assert "to train on" in seen["en"] and "用于训练" not in seen["en"]
    assert "用于训练" in seen["zh"] and "to train on" not in seen["zh"]
    assert picture.startswith(b"\x89PNG") and len(picture) > 12_000  # an empty one: 5 kB
