"""The report page: the verdict first, every number of the facts, one language, and nothing from the data that acts."""

from __future__ import annotations

import base64
import copy
import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from report_facts import BAD, FULL, MINIMAL, metric
from tests.serve.serve_browser import Page, browser

from temper.report import figures
from temper.report.page import METRICS, render

FACTS = {"full": FULL, "minimal": MINIMAL, "hostile": BAD}
SECTIONS = ["compared", "worse", "improved", "damaged", "loss", "data", "cost", "latency", "provenance"]
ORDERED = pytest.mark.parametrize("language", ["en", "zh"])
EVERY = pytest.mark.parametrize("name", FACTS)


def text(html: str, own: bool = False) -> str:
    """Return what is to be read on a page; with `own`, less what is quoted from data, configs and commands."""
    html = re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    if own:
        html = re.sub(r"<title>[^<]*</title>", "", html, count=1)  # scenario and profile
        html = re.sub(
            r"<(bdi|code)\b.*?</\1>", "", re.sub(r"<bdi>.*?</bdi>", "", html, flags=re.DOTALL), flags=re.DOTALL
        )
    return unescape(re.sub(r"<[^>]*>", " ", html))


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Run one browser for all tests."""
    with browser(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@ORDERED
@pytest.mark.parametrize("width", [1280, 390])
@EVERY
def test_in_a_browser(chromium: Page, tmp_path: Path, name: str, width: int, language: str) -> None:
    """No error, no request, nothing wider than the window, and the verdict is seen without scrolling."""
    path = tmp_path / "report.html"
    path.write_text(render(FACTS[name], language), encoding="utf-8")
    chromium.complaints.clear()
    chromium.open(path.as_uri(), width=width, height=800, dark=language == "zh")
    assert chromium.run("document.documentElement.scrollWidth") == width
    assert chromium.run("[...document.querySelectorAll('.lede, .gate')].map(e => e.getBoundingClientRect().bottom)"
                        ".every(bottom => bottom > 0 && bottom < 800)")  # fmt: skip
    assert chromium.run("performance.getEntriesByType('resource').length") == 0
    assert chromium.run("[document.scripts.length, document.images.length, document.links.length].join()") == "0,0,0"
    assert chromium.run("[...document.querySelectorAll('section')].map(e => e.id)") == SECTIONS
    assert chromium.complaints == []


def test_prints_on_a4(chromium: Page, tmp_path: Path) -> None:
    """The page prints as PDF on a few sheets of A4, on white even where the screen is dark."""
    path = tmp_path / "report.html"
    path.write_text(render(FULL, "en"), encoding="utf-8")
    chromium.open(path.as_uri(), dark=True)
    assert chromium.run("getComputedStyle(document.body).backgroundColor") == "rgb(22, 25, 29)"
    chromium.call("Emulation.setEmulatedMedia", media="print")
    assert chromium.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    chromium.call("Emulation.setEmulatedMedia", media="")
    pdf = base64.b64decode(chromium.call("Page.printToPDF", preferCSSPageSize=True)["data"])
    sheets = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", pdf)
    assert 3 <= len(sheets) <= 6
    assert {(round(float(width)), round(float(height))) for width, height in sheets} == {(595, 842)}  # points


@ORDERED
def test_numbers_equal_the_facts(language: str) -> None:
    """Every number of the facts is on the page, to three decimals or in full."""
    html = render(FULL, language)
    seen = text(html)
    three = [FULL["verdict"][key] for key in ("gain", "gain_low", "gain_high", "retention_loss")]
    for found in FULL["sets"].values():
        three += [one[key] for one in found["metrics"] for key in ("base", "tuned", "difference", "low", "high")]
    three += [group[key] for group in FULL["groups"]["retention"] for key in ("base", "tuned")]
    whole = [*FULL["data"].values(), *(FULL["training"][key] for key in ("seconds", "tokens", "peak_bytes", "threads"))]
    whole += [FULL["training"]["tokens_per_second"], FULL["evaluation"]["seconds"], FULL["evaluation"]["asked"]]
    whole += [value for seen in FULL["evaluation"]["latency"].values() for value in seen.values()]
    whole += [value for row in FULL["bench"] for value in row.values() if not isinstance(value, str)]
    for wanted in [f"{abs(value):.3f}" for value in three if value is not None] + [f"{value:,}" for value in whole]:
        assert re.search(rf"(?<![\d.,]){re.escape(wanted)}(?![\d.])", seen), wanted
    assert re.search(r"\+0\.312 (to|至) \+0\.626", seen)
    for row in FULL["provenance"]:
        assert row["sha256"] in html
    assert "make report SCENARIO=customer-service PROFILE=cpu" in seen
    assert html == render(copy.deepcopy(FULL), language)


def test_verdict_in_words() -> None:
    """The verdict, its reasons and what it does not show are said in the page's language, from the numbers."""
    failed = text(render(FULL, "en"))
    assert "✗ Failed" in failed and "✓ Passed" not in failed
    assert "0.233 of the retention score is lost, more than the 0.2 allowed" in failed
    assert "遗忘检查集失去 0.233，超过允许的 0.2" in text(render(FULL, "zh"))
    passed = text(render(MINIMAL, "en"))
    assert "✓ Passed" in passed and "Failed" not in passed and "Why it failed" not in passed
    assert "No improvement is shown" in passed and "No improvement is shown" not in failed


@pytest.mark.parametrize(
    ("base", "tuned", "half", "better", "said"),
    [
        (0.2, 0.5, 0.1, "higher", "better"),
        (0.5, 0.2, 0.1, "higher", "worse"),
        (0.2, 0.5, 0.3, "higher", "undecided"),
        (3.0, 2.0, 0.5, "lower", "better"),
        (2.0, 3.0, 0.5, "lower", "worse"),
        (60.0, 20.0, 1.0, "", "counted"),
        (9.0, 5.0, None, "lower", "unmeasured"),
    ],
)
def test_outcomes(base: float, tuned: float, half: float | None, better: str, said: str) -> None:
    """Better and worse are said only where the interval leaves out 0, by symbol and word; its bar agrees."""
    facts = {**MINIMAL, "sets": {"heldout": {"cases": 32, "metrics": [metric("correct", base, tuned, half, better)]}}}
    html = render(facts, "en")
    words = re.findall(
        "[▲▼◇·–] (?:better|worse|undecided|only counted|not measured)", text(html[html.index("<tbody>") :])
    )
    known = {"better": "▲ better", "worse": "▼ worse", "undecided": "◇ undecided", "counted": "· only counted"}
    assert words[0] == known.get(said, "– not measured")
    bar = figures.judged(facts["sets"]["heldout"]["metrics"])[0]["bar"]
    if half is None:
        assert bar is None
    else:
        assert 0 <= bar["x"] <= bar["middle"] <= bar["x"] + bar["width"] <= 100
        assert (bar["x"] > 50 or bar["x"] + bar["width"] < 50) == (abs(tuned - base) > half)


def test_numbers_keep_what_decides() -> None:
    """A number beside its limit never rounds to it, nor to zero; huge and undefined ones stay short."""
    written = [figures.number(value, 0.2) for value in (0.2, 0.20004, 0.1999, -0.00042, -0.0, 1234.56, 4e22)]
    assert written == ["0.200", "0.20004", "0.1999", "-0.0004", "0.000", "1,234.6", "4e+22"]
    assert figures.number(None) == "not measured"
    assert figures.number(float("nan")) == "nan"


@ORDERED
def test_one_language(language: str) -> None:
    """Outside of what is quoted, a Chinese page has no English words and an English one no Chinese."""
    for facts in (FULL, MINIMAL):
        html = render(facts, language)
        assert f'<html lang="{language}">' in html
        own = text(html, own=True) + " ".join(unescape(label) for label in re.findall(r'data-h="(.*?)"', html))
        found = re.findall(r"[A-Za-z]{2,}[ ,]+[A-Za-z]{2,}" if language == "zh" else "[\u4e00-\u9fff]+", own)
        assert found == []


def test_what_is_not_there_is_named() -> None:
    """No cell is blank: what is missing is not measured, and energy says why."""
    html = render(MINIMAL, "en")
    assert not re.search(r"<(td|dd|p|th)\b[^>]*>\s*</", html)
    seen = text(html)
    assert seen.count("not measured") > 25
    assert "not readable here" in seen and "make bench" in seen
    assert not re.search(r"\bNone\b(?!\.)", seen)
    assert "3,600 J" in text(render({**FULL, "training": {**FULL["training"], "energy_joules": 3600}}, "en"))


def test_metrics_under_their_own_name() -> None:
    """A metric or set that the page does not know shows under its own name, and known ones also by their id."""
    seen = text(render(FULL, "en"))
    assert "spelling" in seen and "spelling" not in METRICS
    assert METRICS["pass_at_1"][0] in seen and "pass_at_1" in seen


def test_answers() -> None:
    """Code keeps its lines in <pre>, empty answers are named, long ones end in an ellipsis, ten stand in each list."""
    html = render(FULL, "en")
    assert "<pre><bdi>```python\ndef refund(days: int) -&gt; bool:\n    " in html
    assert "(an empty answer)" in html
    assert html.count("<article>") == 13
    assert "Sorry. ↵ I cannot." in html
    bad = render(BAD, "en")
    assert max(map(len, re.findall("(?:An_unbroken_word)+", bad))) < 2500
    assert "…" in bad


@ORDERED
def test_hostile_text_is_inert(language: str) -> None:
    """Text from rows, files and settings adds no element, and turns or hides no text."""
    bad = render(BAD, language)
    assert not re.search(r"<(script|img|iframe|link|object|form|base)\b|\son\w+=[\"']?\w+\(", bad)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00]", bad)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in bad and "{{ 7 * 7 }}" in bad
    assert r"\u202egnp.exe\u0000" in bad
    assert "default-src 'none'" in bad
    assert bad.count("</style>") == 1


def test_loss_curve() -> None:
    """Both losses are drawn within the picture, with ticks; a curve of no numbers is not measured."""
    drawn = figures.curve(FULL["loss_curve"])
    assert drawn and set(drawn["lines"]) == {"loss", "eval_loss"}
    assert drawn["lines"]["loss"]["first"] == (1, 2.9) and drawn["lines"]["eval_loss"]["last"][0] == 126
    assert all(0 <= at <= 1000 for line in drawn["lines"].values() for point in line["path"] for at in point)
    assert [label for _, label in drawn["x"]] == ["0", "50", "100"]
    assert [label for _, label in drawn["y"]] == ["0", "1", "2", "3"]
    assert figures.curve([{"step": 1, "loss": float("nan")}]) is None
    long = figures.curve([{"step": step, "loss": 1 / step} for step in range(1, 5001)])
    assert long and len(long["lines"]["loss"]["path"]) < 500
    assert long["lines"]["loss"]["last"] == (5000, 1 / 5000)


def test_facts_are_json() -> None:
    """The page is made of plain JSON values: it is the same from metrics.json."""
    assert render(json.loads(json.dumps(FULL)), "zh") == render(FULL, "zh")
