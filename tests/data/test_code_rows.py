"""The shipped code-generation rows: every answer runs and passes its tests, and those tests can fail.

All rows run in one child process, which is this file started as a program:
`python -I test_code_rows.py rows.jsonl`.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import FrameType

Row = dict[str, str]

ROWS = Path(__file__).resolve().parents[2] / "data" / "code-generation" / "rows.jsonl"
FIELDS = ["id", "instruction", "input", "output", "tests", "topic", "lang"]
ANSWER = re.compile(r"(?:([^\n`][^\n]*)\n\n)?```python\n(.*?)\n```(?:\n\n([^\n]+))?", re.DOTALL)
HAN = re.compile(r"[\u4e00-\u9fff]")
# What an answer and its tests may import: nothing here reaches a file, the network or a process.
MODULES = {
    "ast",
    "base64",
    "binascii",
    "bisect",
    "calendar",
    "collections",
    "collections.abc",
    "csv",
    "datetime",
    "decimal",
    "functools",
    "hashlib",
    "heapq",
    "hmac",
    "io",
    "itertools",
    "json",
    "math",
    "operator",
    "re",
    "struct",
    "unicodedata",
    "urllib.parse",
    "zlib",
}
# Names, and attributes with their dot, that make a result depend on the moment, on chance or on the machine.
UNSTEADY = {
    "open",
    "input",
    "eval",
    "exec",
    "compile",
    "print",
    "id",
    "hash",
    "globals",
    "__import__",
    "random",
    ".now",
    ".today",
    ".utcnow",
    ".time",
    ".localtime",
    ".random",
    ".urandom",
    ".environ",
    ".getenv",
}
REASONS = {
    "20001": "required",
    "20002": "bad format",
    "20003": "out of range",
    "20004": "check failed",
    "20005": "unknown value",
    "20006": "duplicate",
    "20007": "conflict",
}

CPU_SECONDS_ALL = 60
# One run of one row takes about a millisecond; a loop that a mutant makes endless stops here.
CPU_SECONDS_ROW = 0.5


class Overrun(BaseException):
    """A row used up its CPU time; not an Exception, so that no row can catch it."""


# What runs in the child process.


def code_of(row: Row) -> str:
    """Return the Python source inside the answer's fence."""
    return row["output"].split("```python\n", 1)[1].split("\n```", 1)[0]


def problem(code: str, tests: str) -> str:
    """Run code and then tests in one fresh namespace; return what went wrong, or an empty text."""
    names: dict[str, object] = {"__name__": "row"}
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS_ROW)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(code, "<code>", "exec"), names)
            exec(compile(tests, "<tests>", "exec"), names)
    except (Exception, SystemExit, Overrun) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return ""


def mutants(code: str) -> Iterator[tuple[str, str]]:
    """Yield (name, code) with one top-level function, or all methods of one class, returning None at once."""
    for index, node in enumerate(ast.parse(code).body):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        tree = ast.parse(code)
        changed = tree.body[index]
        methods = changed.body if isinstance(changed, ast.ClassDef) else [changed]
        for method in methods:
            if isinstance(method, ast.FunctionDef) and method.name != "__init__":
                method.body = [ast.Return(ast.Constant(None))]
        yield node.name, ast.unparse(ast.fix_missing_locations(tree))


def is_python(text: str) -> bool:
    """Say whether a row's input is Python that defines something."""
    try:
        return any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.parse(text).body)
    except SyntaxError:
        return False


def run_rows(path: str) -> dict[str, dict[str, str]]:
    """Run every row; return the ids that fail, the mutants that pass and the inputs that need no fix."""
    report: dict[str, dict[str, str]] = {"failing": {}, "surviving": {}, "unbroken": {}}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if wrong := problem(code_of(row), row["tests"]):
            report["failing"][row["id"]] = wrong
        for name, code in mutants(code_of(row)):
            if not problem(code, row["tests"]):
                report["surviving"][f"{row['id']}:{name}"] = "tests pass though it returns None"
        if is_python(row["input"]) and not problem(row["input"], row["tests"]):
            report["unbroken"][row["id"]] = "tests pass with the input as it is"
    return report


def stop_row(_number: int, _frame: FrameType | None) -> None:
    """Turn the timer's signal into an exception inside the row."""
    raise Overrun(f"more than {CPU_SECONDS_ROW} s of CPU time")


def child() -> None:
    """Print the report of all rows as JSON; the system ends this process at its CPU limit."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS_ALL, CPU_SECONDS_ALL))
    signal.signal(signal.SIGVTALRM, stop_row)
    print(json.dumps(run_rows(sys.argv[1])))


# What pytest runs.


@cache
def rows() -> list[Row]:
    """Return the shipped rows."""
    return [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]


@cache
def report(path: Path = ROWS) -> dict[str, dict[str, str]]:
    """Run a file of rows in one isolated Python and return its report."""
    done = subprocess.run(
        [sys.executable, "-I", __file__, str(path)],
        capture_output=True,
        text=True,
        timeout=4 * CPU_SECONDS_ALL,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, str]] = json.loads(done.stdout)
    return found


def wrong(check: Mapping[str, object]) -> dict[str, object]:
    """Keep the entries of id -> finding that found something."""
    return {name: found for name, found in check.items() if found}


def names_in(source: str) -> set[str]:
    """Return all names that a piece of source uses, and all attributes as .name."""
    nodes = list(ast.walk(ast.parse(source)))
    return {node.id for node in nodes if isinstance(node, ast.Name)} | {
        f".{node.attr}" for node in nodes if isinstance(node, ast.Attribute)
    }


def imports_of(source: str) -> set[str]:
    """Return the modules that a piece of source imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def defined_in(source: str) -> set[str]:
    """Return the names of the top-level functions and classes."""
    return {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def errors_in(source: str) -> list[str]:
    """Return the texts of all ValueErrors made, with a star for every formatted part."""
    texts: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "ValueError":
            text = node.args[0]
            parts = text.values if isinstance(text, ast.JoinedStr) else [text]
            fixed = (str(part.value) if isinstance(part, ast.Constant) else "*" for part in parts)
            texts.append("".join(fixed))
    return texts


def in_house_form(text: str) -> bool:
    """Say whether a message reads E<code> <field>: <reason>, with the fixed reason of a 2000x code."""
    match = re.fullmatch(r"E(\*|[1-5][0-9]{4}) (\*|[a-z][a-z0-9_]*): (.+)", text)
    return match is not None and REASONS.get(match[1], match[3]) == match[3]


def test_every_answer_passes_its_own_tests() -> None:
    """Code and tests of each row run in one namespace without a failed assert or another error."""
    assert report()["failing"] == {}


def test_every_function_that_returns_none_is_noticed() -> None:
    """Each top-level function, emptied on its own, makes its row's tests fail."""
    assert report()["surviving"] == {}


def test_code_to_be_fixed_is_broken() -> None:
    """Python given as input fails the tests that the answer passes."""
    assert report()["unbroken"] == {}
    assert sum(is_python(row["input"]) for row in rows()) >= 20


def test_the_runner_notices_bad_rows(tmp_path: Path) -> None:
    """A failed assert, an endless loop, an exit, idle tests and a sound input each appear in the report."""

    def bad(name: str, code: str, tests: str, given: str = "") -> str:
        output = f"```python\n{code}\n```"
        return json.dumps({"id": name, "output": output, "tests": tests, "input": given})

    good = "def f():\n    return 1"
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "\n".join(
            [
                bad("assert", good, "assert f() == 2"),
                bad("loop", "def f():\n    while True:\n        pass", "assert f() == 1"),
                bad("exit", "def f():\n    raise SystemExit(0)", "assert f() == 1"),
                bad("idle", good, "assert True", good),
            ]
        ),
        encoding="utf-8",
    )
    found = report(path)
    assert sorted(found["failing"]) == ["assert", "exit", "loop"]
    assert list(found["surviving"]) == ["idle:f"]
    assert list(found["unbroken"]) == ["idle"]


def test_there_are_enough_rows_with_the_right_fields() -> None:
    """At least 200 rows, each with exactly the documented fields as text, ids counted up from cg-0001."""
    assert len(rows()) >= 200
    assert (
        wrong({row["id"]: list(row) != FIELDS or not all(isinstance(v, str) for v in row.values()) for row in rows()})
        == {}
    )
    assert [row["id"] for row in rows()] == [f"cg-{n:04d}" for n in range(1, len(rows()) + 1)]


def test_instructions_are_unique() -> None:
    """No two rows ask for the same thing in the same words, spaces and case aside."""
    seen = Counter(" ".join(row["instruction"].lower().split()) for row in rows())
    assert [text for text, count in seen.items() if count > 1] == []


def test_both_languages_hold_two_fifths_or_more() -> None:
    """Chinese and English rows are about as many, and `lang` is the language of the instruction."""
    counts = Counter(row["lang"] for row in rows())
    assert set(counts) == {"zh", "en"} and min(counts.values()) >= 0.4 * len(rows())
    plain = {row["id"]: re.sub(r"`[^`]*`", "", row["instruction"]) for row in rows()}
    words = {"zh": HAN, "en": re.compile(r"[a-z]{2,}")}
    assert wrong({row["id"]: len(words[row["lang"]].findall(plain[row["id"]])) < 6 for row in rows()}) == {}


def test_an_answer_is_one_block_and_at_most_one_sentence() -> None:
    """Each answer is one fenced block of 4 to 40 lines, with at most one line in the row's language."""
    for row in rows():
        match = ANSWER.fullmatch(row["output"])
        assert match and row["output"].count("```") == 2, row["id"]
        before, code, after = match.groups()
        assert 4 <= len(code.splitlines()) <= 40, row["id"]
        assert max(map(len, code.splitlines())) <= 100, row["id"]
        beside = [text for text in (before, after) if text]
        assert len(beside) <= 1, row["id"]
        assert all(bool(HAN.search(text)) == (row["lang"] == "zh") for text in beside), row["id"]


def test_each_row_has_three_to_six_plain_asserts() -> None:
    """Tests are source with 3 to 6 asserts at the top level."""
    counts = {row["id"]: sum(isinstance(node, ast.Assert) for node in ast.parse(row["tests"]).body) for row in rows()}
    assert wrong({name: not 3 <= count <= 6 for name, count in counts.items()}) == {}


def test_a_reader_is_told_which_names_to_define() -> None:
    """What the tests use of the answer is named in the instruction or the input."""
    untold = {}
    for row in rows():
        used = defined_in(code_of(row)) & names_in(row["tests"])
        asked = set(re.findall(r"\w+", row["instruction"] + " " + row["input"], re.ASCII))
        untold[row["id"]] = (used - asked) or not used
    assert wrong(untold) == {}


def test_a_reader_is_told_which_fields_errors_name() -> None:
    """A field that a test expects in an error is named in the instruction, the input or the test's data."""
    expected = re.compile(r'== \(?"E[0-9]{5} (\w+): [^"]*"')
    untold = {}
    for row in rows():
        told = f"{row['instruction']} {row['input']} {expected.sub('', row['tests'])}"
        untold[row["id"]] = set(expected.findall(row["tests"])) - set(re.findall(r"\w+", told, re.ASCII))
    assert wrong(untold) == {}
    assert sum(len(expected.findall(row["tests"])) for row in rows()) >= 200


def test_rows_are_deterministic_and_self_contained() -> None:
    """Answers and tests import a few harmless standard modules and read no file, clock, network or chance."""
    sources = {row["id"]: [code_of(row), row["tests"]] for row in rows()}
    assert (
        wrong({name: {m for text in texts for m in imports_of(text)} - MODULES for name, texts in sources.items()})
        == {}
    )
    assert (
        wrong({name: {used for text in texts for used in names_in(text) & UNSTEADY} for name, texts in sources.items()})
        == {}
    )
    assert names_in("open(date.today())") & UNSTEADY == {"open", ".today"}


def test_errors_follow_the_house_form() -> None:
    """Every ValueError an answer raises reads `E<code> <field>: <reason>` with the code's fixed reason."""
    found = {row["id"]: errors_in(code_of(row)) for row in rows()}
    assert wrong({name: [t for t in texts if not in_house_form(t)] for name, texts in found.items()}) == {}
    assert sum(map(len, found.values())) >= 200


def test_the_readme_states_the_counts() -> None:
    """README.md gives the numbers of rows, of languages, of inputs and of each topic."""
    text = ROWS.with_name("README.md").read_text(encoding="utf-8")
    langs = Counter(row["lang"] for row in rows())
    given = sum(bool(row["input"]) for row in rows())
    assert f"{len(rows())} rows: {langs['zh']} Chinese and {langs['en']} English" in text
    assert f"{given} rows have an `input`" in text
    stated = dict(re.findall(r"\| ([a-z-]+) \| ([0-9]+)(?= \|)", text))
    assert stated == {topic: str(count) for topic, count in Counter(row["topic"] for row in rows()).items()}


if __name__ == "__main__":
    child()
