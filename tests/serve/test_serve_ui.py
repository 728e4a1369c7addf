"""The chat page, in a real Chromium in front of real servers: a tuned model, and a base model with hostile answers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import serve_model
import serve_page
from serve_browser import Page, browser
from serve_page import serving
from serving import Running, free_port

from temper.errors import UsageError
from temper.serve import launcher, ui

KEY = "Key-of-the-page"
HOSTILE = "<img src=x onerror=\"document.title='x'\"><b>!</b>"
BASE = {
    "Who are you?": HOSTILE,
    "你是谁？": "基础模型。",
    "Write code.": "So:\n```python\nprint(1 < 2)\n```\nOK.",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Serve the base model."""
    place = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve_model, "ANSWERS", BASE)
        serve_model.make(place / "model")
    with serving(place / "model", "base", place / "log") as running:
        yield running


@pytest.fixture(scope="module")
def tuned(folder: Path, base: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Serve the tuned model, with the base model beside it."""
    with serving(folder, "tuned", tmp_path_factory.mktemp("tuned") / "log", f"base={base.url}") as running:
        yield running


@pytest.fixture(scope="module")
def locked(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Serve the tuned model to those who know the key, beside a server that is not there."""
    gone = f"gone=http://127.0.0.1:{free_port()}"
    with serving(folder, "locked", tmp_path_factory.mktemp("locked") / "log", gone, KEY) as running:
        yield running


@pytest.fixture(scope="module")
def endless(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Serve the tuned model with an end token that it has not learnt, beside itself."""
    place = tmp_path_factory.mktemp("endless")
    model = serve_page.endless(folder, place / "model")
    with serving(model, "endless", place / "log", "itself=http://127.0.0.1:PORT") as running:
        yield running


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Run one browser for all tests."""
    with browser(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture
def page(chromium: Page) -> Iterator[Page]:
    """Return the browser's tab; no script may have failed and the policy may have refused nothing."""
    yield chromium
    chromium.run("0")  # what was reported meanwhile is read along
    assert chromium.complaints == []


def write(page: Page, question: str) -> None:
    """Write a question into the page and send it."""
    page.until("models.length > 0")
    page.run("document.getElementById('question').focus()")
    page.type(question)
    page.press("Enter")
    page.until("turns.length > 0 || document.getElementById('lock').open")  # refused at once, the turn is gone again


def answers(page: Page) -> list[list[str]]:
    """Wait for the answers and return the texts of each turn as they are shown."""
    page.until("running === null")
    shown = "[...document.querySelectorAll('.turn')].map(turn => [...turn.querySelectorAll('.body')]"
    return page.run(f"{shown}.map(body => body.innerText))")


def asked(server: Running, least: int = 0) -> list[dict[str, Any]]:
    """Return the access log's lines of conversations, once there are at least so many; each comes after its answer."""
    until = time.monotonic() + 10
    while True:
        lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
        found = [line for line in lines if line["route"] == "/v1/chat/completions"]
        if len(found) >= least or time.monotonic() > until:
            return found
        time.sleep(0.05)


@pytest.mark.parametrize("path", [*ui.FILES, "/ui/models.json"])
def test_files_come_with_a_strict_policy(tuned: Running, path: str) -> None:
    """Each file has its type and the policy, names no other place, and is not sent twice."""
    found = httpx.get(tuned.url + path, trust_env=False)
    kinds = {"": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    assert found.headers["content-type"].split(";")[0] == kinds.get(Path(path).suffix, "application/json")
    assert found.headers["content-security-policy"].startswith(
        "default-src 'none'; script-src 'self'; style-src 'self'"
    )
    assert "unsafe" not in found.headers["content-security-policy"]
    assert found.headers["x-content-type-options"] == "nosniff"
    foreign = found.text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//\w|@import|url\(|innerHTML|outerHTML|insertAdjacent|localStorage|eval", foreign)
    again = httpx.get(tuned.url + path, headers={"if-none-match": found.headers["etag"]}, trust_env=False)
    assert (again.status_code, again.content) == (304, b"")


def test_a_question_is_answered_by_both_models(page: Page, tuned: Running, base: Running) -> None:
    """Enter sends; each model's answer comes below its name with its speed, and the conversation goes along."""
    before = len(asked(tuned)), len(asked(base))
    page.open(tuned.url + "/ui")
    write(page, "Who are you?")
    assert answers(page) == [[serve_model.ANSWERS["Who are you?"], HOSTILE]]
    assert page.run("[...document.querySelectorAll('h3')].map(name => name.textContent)") == ["tuned", "base"]
    facts = page.run("[...document.querySelectorAll('.facts')].map(line => line.textContent)")
    counts = [re.fullmatch(r"first token after [\d.]+ s · (\d+) tokens · [\d.]+ tokens/s", line)[1] for line in facts]
    assert list(map(int, counts)) == [
        asked(server, at + 1)[at]["generated_tokens"] for server, at in zip((tuned, base), before, strict=True)
    ]
    write(page, "Write code.")
    answers(page)
    talk = [
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": serve_model.ANSWERS["Who are you?"]},
        {"role": "user", "content": "Write code."},
    ]
    assert page.run("messages(models[0], 'x').length") == 5
    page.run("document.getElementById('memory').click()")
    assert page.run("messages(models[0], 'x').length") == 1
    whole = tuned.post("/v1/chat/completions", {"messages": talk, "max_tokens": 1}).json()
    assert asked(tuned, before[0] + 2)[before[0] + 1]["prompt_tokens"] == whole["usage"]["prompt_tokens"]


def test_what_a_model_writes_stays_text(page: Page, tuned: Running) -> None:
    """Markup in questions and answers is shown, not obeyed; code between fences stands in a box."""
    page.open(tuned.url + "/ui")
    write(page, HOSTILE)
    assert page.run("document.querySelector('.question').innerText") == HOSTILE
    answers(page)
    page.run("clear()")
    write(page, "Who are you?")
    assert answers(page)[0][1] == HOSTILE
    page.run("clear()")
    write(page, "Write code.")
    answers(page)
    assert page.run("document.querySelectorAll('#log :is(img, script, b)').length") == 0
    assert page.run("document.title") == "Temper"
    assert page.run(
        "[...document.querySelectorAll('.body')[1].children].map(part => [part.tagName, part.innerText])"
    ) == [
        ["P", "So:"],
        ["PRE", "print(1 < 2)"],
        ["P", "OK."],
    ]


@pytest.mark.parametrize("other", [0, 1], ids=["relayed", "direct"])
def test_an_answer_can_be_stopped(page: Page, endless: Running, other: int) -> None:
    """Esc and the button end the answer: what came stays, and the server stops working on it."""
    before = len(asked(endless))
    page.open(endless.url + "/ui")
    page.until("models.length > 0")
    page.run(f"models[{other}].box.click()")
    page.run("document.getElementById('tokens').value = 1900")
    write(page, "Who are you?")
    page.until("turns[0].answers[0].tokens > 3")
    assert page.run("document.getElementById('send').hidden")
    page.press("Escape") if other else page.run("document.getElementById('stop').click()")
    page.until("running === null", 5)
    assert page.run("turns[0].answers.map(answer => answer.ending)") == ["stopped"]
    assert page.run("turns[0].answers[0].text")
    [line] = asked(endless, before + 1)[before:]
    assert line["status"] == 499 and line["generated_tokens"] < 1000


def test_the_page_speaks_chinese(page: Page, tuned: Running) -> None:
    """A Chinese browser finds every text in Chinese, also of what is shown already; the switch goes there and back."""
    page.open(tuned.url + "/ui", language="zh-CN")
    write(page, "你是谁？")
    assert answers(page) == [[serve_model.ANSWERS["你是谁？"], BASE["你是谁？"]]]
    same = "[...document.querySelectorAll('[data-t]')].filter(node => node.textContent === node.dataset.t).length"
    assert page.run(same) == 0
    assert page.run("document.getElementById('question').placeholder") == "输入问题"
    assert re.match(r"首个词元 [\d.]+ 秒 · \d+ 个词元", page.run("document.querySelector('.facts').textContent"))
    page.run("document.getElementById('language').click()")
    assert page.run(same) > 10
    assert page.run("document.documentElement.lang") == "en"
    assert page.run("document.querySelector('.facts').textContent").startswith("first token after ")
    page.run("document.getElementById('language').click()")
    assert page.run(same) == 0


def test_the_key_is_asked_for_and_forgotten(page: Page, locked: Running) -> None:
    """A question refused with 401 waits for the key; a wrong one is refused, the right one kept in memory only."""
    page.open(locked.url + "/ui")
    write(page, "Who are you?")
    for key, title in (("wrong", "This server wants its API key"), (KEY, "The key was refused")):
        # It closes and, where the 401 is quick, is open again before one looks: its title tells which asking it is.
        page.until(
            f"document.getElementById('lock').open && document.getElementById('wanted').textContent === '{title}'"
        )
        page.run("document.getElementById('key').focus()")
        page.type(key)
        page.press("Enter")
    page.until("turns[0]?.answers[0].ending")
    assert answers(page) == [[serve_model.ANSWERS["Who are you?"], ""]]
    failure = page.run("document.querySelectorAll('.failure')[1].textContent")
    assert re.fullmatch(r"502: gone does not answer at http://127\.0\.0\.1:\d+", failure)
    assert page.run("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    assert KEY not in page.run("document.documentElement.outerHTML") + locked.log.read_text()


def test_errors_and_lines_and_clearing(page: Page, tuned: Running) -> None:
    """A refusal is shown in the server's words; Shift+Enter makes a line; a new conversation has nothing of the old."""
    page.open(tuned.url + "/ui")
    page.until("models.length > 0")
    page.run("document.getElementById('question').focus()")
    page.type("one")
    page.press("Enter", shift=True)
    assert page.run("turns.length") == 0
    write(page, "two" * 2000)
    assert page.run("turns[0].question").startswith("one\ntwotwo")
    page.until("running === null")
    assert "`inputs` tokens + `max_new_tokens` must be <= 2000" in page.run(
        "document.querySelector('.failure').textContent"
    )
    page.run("document.getElementById('clear').click()")
    assert page.run("turns.length + document.querySelectorAll('.turn').length") == 0
    assert page.run("messages(models[0], 'x')") == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_fits_the_screen(page: Page, tuned: Running, width: int, dark: bool) -> None:
    """Nothing is wider than a phone or a desktop, and text stands out from its ground, by day and by night."""
    page.open(tuned.url + "/ui", width=width, dark=dark)
    write(page, "word" * 200)
    answers(page)
    assert page.run("document.documentElement.scrollWidth") == width
    wide = (
        "[...document.querySelectorAll('body *')].filter(part => part.getBoundingClientRect().right > innerWidth + 1)"
    )
    assert page.run(f"{wide}.map(part => part.tagName)") == []
    levels = (
        "[...getComputedStyle(document.body)[name].matchAll(/\\d+/g)].reduce((sum, part) => sum + Number(part[0]), 0)"
    )
    text, ground = (page.run(f"(name => {levels})('{name}')") for name in ("color", "backgroundColor"))
    assert (text - ground if dark else ground - text) > 500
    side_by_side = page.run("new Set([...document.querySelectorAll('article')].map(part => part.offsetTop)).size") == 1
    assert side_by_side == (width > 600)


@pytest.mark.parametrize(
    "text",
    [
        "base=http://192.0.2.7:8000",
        "base=http://base.example:80",
        "base=https://127.0.0.1:8000",
        "base=http://127.0.0.1:8000/ui",
        "base=http://user@127.0.0.1:8000",
        "base=http://127.0.0.1",
        "base=http://127.0.0.1:x",
        "base=http://127.0.0.1.example:8000",
        "http://127.0.0.1:8000",
        "base",
    ],
)
def test_only_servers_on_this_machine_can_be_named(text: str) -> None:
    """Whatever is not NAME=http://LOOPBACK:PORT is refused at start."""
    with pytest.raises(UsageError, match=re.escape(repr(text))):
        launcher.read(["--model-id", "m", "--beside", "good=http://[::1]:8001", "--beside", text])


def test_peers_are_read() -> None:
    """Names and addresses are taken as they are, without a slash at the end."""
    named = ("base=http://127.0.0.1:8001/", "两=http://localhost:8002", "six=http://[::1]:8003")
    read = launcher.read(["--model-id", "m", *(word for each in named for word in ("--beside", each))])
    assert read.beside == [
        launcher.Peer("base", "http://127.0.0.1:8001"),
        launcher.Peer("两", "http://localhost:8002"),
        launcher.Peer("six", "http://[::1]:8003"),
    ]


def test_the_way_to_the_other_server_is_guarded(tuned: Running, locked: Running) -> None:
    """Nothing but JSON of a bounded size goes there, from those with the key, and only to servers named at start."""
    talk = {"messages": [{"role": "user", "content": "你是谁？"}], "max_tokens": 40}
    reply = tuned.post("/ui/ask/0", talk)
    assert reply.json()["choices"][0]["message"]["content"] == BASE["你是谁？"]
    assert tuned.post("/ui/ask/1", talk).status_code == 404
    assert httpx.get(tuned.url + "/ui/ask/0", trust_env=False).status_code == 405
    text = httpx.post(tuned.url + "/ui/ask/0", content=json.dumps(talk), trust_env=False)
    assert text.status_code == 415
    assert tuned.post("/ui/ask/0", {"messages": ["x" * 2_000_000]}).status_code == 413
    assert tuned.post("/ui/ask/0", {**talk, "max_tokens": 0}).status_code == 422
    assert locked.post("/ui/ask/0", talk).status_code == 401
    assert locked.post("/ui/ask/0", talk, headers={"authorization": f"Bearer {KEY}"}).status_code == 502
