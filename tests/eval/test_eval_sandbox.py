"""Code in an answer is judged by its tests and can do nothing else: hostile answers against the real kernel."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from temper.eval import confine
from temper.eval.sandbox import Outcome, code_of, passes

REPOSITORY = Path(__file__).resolve().parents[2]
ROWS = REPOSITORY / "data" / "code-generation" / "rows.jsonl"
RIGHT = "def double(n):\n    return 2 * n\n"
TESTS = "assert double(2) == 4\nassert double(0) == 0"


def attempt(action: str) -> str:
    """Run statements in the sandbox; return "seccomp" or "landlock", which refused them, or what happened instead."""
    lines = "\n".join(f"        {line}" for line in action.splitlines())
    code = f"import os, socket, ctypes\ndef tried():\n    try:\n{lines}\n    except OSError as error:\n"
    why = passes(f"{code}        return error.errno\n    return 'it worked'", "assert tried() == None").why
    got = why.partition("(got ")[2]
    return {"1)": "seccomp", "13)": "landlock"}.get(got, why)


def in_new_python(code: str) -> subprocess.Popen[str]:
    """Start a Python that can import temper."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY / "scripts")}
    return subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)


def children(parent: int) -> list[int]:
    """Return the running processes that `parent` started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, above = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has ended
            continue
        if int(above) == parent and state != "Z":
            found.append(int(stat.parent.name))
    return found


def test_a_right_answer_passes_and_a_wrong_one_says_why() -> None:
    """The reason names the first failed assert and the value, or the error and where it came from."""
    assert passes(f"So:\n\n```python\n{RIGHT}```\nDone.", TESTS) == Outcome(True, "")
    wrong = {
        RIGHT.replace("2 *", "3 *"): "AssertionError at: assert double(2) == 4 (got 6)",
        RIGHT.replace("2 *", "1 / 0 *"): "ZeroDivisionError: division by zero at: assert double(2) == 4",
        "double = lambda n: object()": "AssertionError at: assert double(2) == 4 (got <object>)",
        "": "NameError: name 'double' is not defined at: assert double(2) == 4",
        "import numpy": "ModuleNotFoundError: No module named 'numpy'",
    }
    assert {code: passes(code, TESTS).why for code in wrong} == wrong
    assert passes("def double(", TESTS).why.startswith("SyntaxError: '(' was never closed")
    assert passes("raise ValueError('数\\n\\x1b[31m' + 'x' * 9999)", TESTS).why[:20] == "ValueError: 数  [31mx"
    assert passes(RIGHT, "assert double(").why.startswith("the unit tests are not Python")


@pytest.mark.parametrize(
    ("test", "holds"),
    [
        ("assert f(3) is None", False),
        ("assert f(None) is None and not f(0)", True),
        ("assert f(1) is True", False),
        ("assert f(1) == True", True),
        ("assert not f(1)", False),
        ("assert f('a') != 'a'", False),
        ("assert f(1) < 2 and f([1]) == [2]", False),
        ("for n in range(3):\n    assert f(n) == n + (n == 2)", False),
        ("def same(a):\n    return f(a)\nassert same({'a': {1, 2}}) == {'a': {2, 1}}", True),
    ],
)
def test_asserts_of_every_form_are_judged(test: str, holds: bool) -> None:
    """Literals, is, not, and, comparisons, loops and helpers mean what they mean in Python."""
    assert passes("def f(x):\n    return x", test).passed == holds


VALUES: list[Any] = [
    *(0, -0.0, 1, True, 1.0, 0.1, Decimal("0.1"), Decimal("0.5"), Fraction(1, 2), Fraction(1, 3), 1e300, 10**300),
    *(float("inf"), None, "", "1", "None", "[]", b"1", bytearray(b"1"), [], (), set(), {}, [1, "a"], (1, "a")),
    *({1: 2}, {1.0: 2}, {1, 2}, frozenset({2, 1}), {1: 0, 2: 0}.keys(), [[1], 2], [1, [2]], "é", "\ud800", "1, 1"),
]  # fmt: skip


def test_plain_text_is_equal_exactly_where_the_values_are() -> None:
    """What the child sends of two values is the same text when, and only when, Python calls the values equal."""
    unlike = [(a, b) for a in VALUES for b in VALUES if (confine.plain(a) == confine.plain(b)) != (a == b)]
    assert unlike == []


def test_the_shipped_rows_pass_with_their_own_answers() -> None:
    """Every tenth row of data/code-generation, and none of them with an empty answer."""
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()][::10]
    assert len(rows) >= 20
    assert {row["id"]: passes(row["output"], row["tests"]) for row in rows if row} == {
        row["id"]: Outcome(True, "") for row in rows
    }
    assert not any(passes("", row["tests"]).passed for row in rows)


@pytest.mark.parametrize(
    "code",
    [
        "import asyncio\nasync def wait(n):\n    await asyncio.sleep(0.01)\n    return 2 * n\n"
        "def double(n):\n    return asyncio.run(wait(n))",
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def double(n):\n    with ThreadPoolExecutor(4) as pool:\n        return sum(pool.map(int, [n, n]))",
        "from __future__ import annotations\nimport dataclasses, typing\n@dataclasses.dataclass\nclass Pair:\n"
        "    a: int\ndef double(n):\n    assert typing.get_type_hints(Pair)\n    return 2 * Pair(n).a",
        "import ssl, sqlite3, zoneinfo, ctypes, logging, random, uuid, time\ntime.sleep(0.01)\nrandom.random()\n"
        "print(uuid.uuid4())\ndef double(n):\n    rows = sqlite3.connect(':memory:').execute(f'select 2 * {n}')\n"
        "    return rows.fetchone()[0]",
        RIGHT + "import atexit, threading, time\natexit.register(time.sleep, 99)\n"
        "threading.Thread(target=time.sleep, args=(99,)).start()",
    ],
    ids=["asyncio", "threads", "annotations", "library", "late"],
)
def test_honest_code_may_use_the_standard_library(code: str) -> None:
    """Event loops, threads, type hints and extension modules work inside, and no thread or exit handler is awaited."""
    started = time.monotonic()
    assert passes(code, TESTS) == Outcome(True, "")
    assert time.monotonic() - started < 10


def test_no_packet_leaves() -> None:
    """Connecting by TCP and sending by UDP are refused, and the listeners on loopback hear nothing."""
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        for listener in (tcp, udp):
            listener.bind(("127.0.0.1", 0))
            listener.setblocking(False)
        tcp.listen()
        for action in (
            f"socket.create_connection({tcp.getsockname()}, 1)",
            f"socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', {udp.getsockname()})",
            "socket.socketpair()[0].sendto(b'x', b'\\0name')",
            "socket.socketpair(type=socket.SOCK_DGRAM)",
            "socket.socket(socket.AF_UNIX)",
        ):
            assert attempt(action) == "seccomp", action
        for hear in (tcp.accept, lambda: udp.recv(1)):
            with pytest.raises(BlockingIOError):
                hear()


def test_no_file_is_written_or_read(tmp_path: Path) -> None:
    """Making, changing, renaming and deleting files is refused everywhere, and so is reading what is not a library."""
    kept = tmp_path / "kept"
    kept.write_text("kept")
    path, home = repr(str(kept)), repr(str(Path.home() / "temper-made"))
    writes = [f"open({place}, 'w')" for place in (path, home, "'made'", "'/tmp/temper-made'", "'/dev/shm/temper-made'")]
    writes += [f"os.{name}({path})" for name in ("remove", "listxattr", "chdir")]
    writes += [f"os.truncate({path}, 0)", f"os.chmod({path}, 0)", f"os.utime({path})", f"os.chown({path}, 1, 1)"]
    writes += [f"os.rename({path}, {path} + '2')", f"os.symlink('x', {path} + '2')", f"os.mkdir({path} + '2')"]
    writes += [f"os.open({path}, os.O_RDONLY | os.O_TRUNC)", f"os.link({path}, 'made')", "os.mkfifo('made')"]
    writes += ["open('/dev/null', 'w')", "os.memfd_create('made')"]
    secret = [str(ROWS), __file__, "/etc/passwd", "/proc/self/environ", "/proc/self/mem", "/proc/self/maps"]
    reads = [f"open({name!r})" for name in [*secret, f"/proc/{os.getpid()}/environ", "/proc/1/cmdline", str(kept)]]
    reads += [f"os.listdir({name!r})" for name in ("/", ".", "/proc", "/proc/self/fd", str(tmp_path))]
    assert {action: by for action in writes if (by := attempt(action)) != "seccomp"} == {}
    assert {action: by for action in reads if (by := attempt(action)) != "landlock"} == {}
    assert kept.read_text() == "kept" and os.listdir(tmp_path) == ["kept"] and kept.stat().st_mode & 0o777
    assert not Path.home().joinpath("temper-made").exists() and not Path("/tmp/temper-made").exists()


@pytest.mark.parametrize(
    "action",
    [
        "os.fork()",
        "import subprocess\nsubprocess.run(['/bin/true'])",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.kill(os.getppid(), 0)",
        "os.killpg(0, 0)",
        "os.kill(1, 0)",
        "os.setsid()",
        "os.setuid(0)",
        "os.nice(0)",
        "os.sched_setaffinity(os.getppid(), [0])",
        "import fcntl\nfcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
        "import fcntl, termios\nfcntl.ioctl(0, termios.TIOCSTI, b'x')",
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "if libc.setrlimit(7, (ctypes.c_ulong * 2)(9, 9)):\n    raise OSError(ctypes.get_errno(), '')",
    ],
)
def test_other_processes_are_out_of_reach(action: str) -> None:
    """No process can be started, signalled or changed, and no limit be set."""
    assert attempt(action) == "seccomp"


# Numbers on x86_64 and aarch64. Their arguments are all zero: EPERM then comes from the filter alone.
CALLS = {
    "socket": (41, 198), "connect": (42, 203), "io_uring_setup": (425, 425), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "mount": (165, 40), "fsopen": (430, 430),
    "unshare": (272, 97), "setns": (308, 268), "keyctl": (250, 219), "bpf": (321, 280), "memfd_create": (319, 279),
    "execve": (59, 221), "clone": (56, 220), "pidfd_open": (434, 434), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "prctl": (157, 167), "seccomp": (317, 277), "shmget": (29, 194), "chroot": (161, 51),
    "openat2": (437, 437), "sendmsg": (46, 211), "add_key": (248, 217), "init_module": (175, 105),
    "a call to come": (1000, 1000), "x32's socket": (0x40000029, 1001),
}  # fmt: skip


def test_system_calls_made_directly_are_refused() -> None:
    """Through ctypes too the filter answers EPERM, and only a right answer to the test's question shows it."""
    column = ["x86_64", "aarch64"].index(os.uname().machine)
    for name, numbers in CALLS.items():
        action = (
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            f"if libc.syscall({numbers[column]}, *[ctypes.c_long(0)] * 6) == -1:\n"
            "    raise OSError(ctypes.get_errno(), '')"
        )
        assert attempt(action) == "seccomp", name


SPENDERS = {
    "x = bytearray(10 * 2**30)": "memory limit of 128 MiB",
    "x = []\nwhile True:\n    x.append(bytearray(2**20))": "memory limit of 128 MiB",
    "while True:\n    pass": "time limit of 1 s",
    "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True:\n    pass": "time limit of 1 s",
    "import time\ntime.sleep(1000)": "time limit of 1 s",
    "import os\nos.close(3)\nos.close(1)\nos.kill(os.getpid(), 19)": "time limit of 1 s",
    "while True:\n    print('x' * 10**6)": "time limit of 1 s",
    "import os\nwhile True:\n    os.write(3, b'x' * 4096)": "too much output",
    "import os\nwhile True:\n    os.fork()": "PermissionError: [Errno 1] Operation not permitted",
    "import os\nos.abort()": "ended by signal 6",
    "import os\nos.kill(os.getpid(), 40)": "ended by signal 40",
}


@pytest.mark.parametrize("code", SPENDERS)
def test_taking_too_much_ends_soon(code: str) -> None:
    """Memory, time, sleep, output and processes are bounded, and the reason says which bound was met."""
    started = time.monotonic()
    assert passes(code + "\n" + RIGHT, TESTS, cpu_s=1, memory=128 * 2**20) == Outcome(False, SPENDERS[code])
    assert time.monotonic() - started < 10


def test_a_bomb_of_threads_is_bounded_by_memory() -> None:
    """Threads without end stop at an error, and nothing of them is left."""
    code, before = "import threading, time\nthreading.stack_size(32768)\nwhile True:\n", children(os.getpid())
    outcome = passes(code + "    threading.Thread(target=time.sleep, args=(99,)).start()\n", TESTS, cpu_s=2)
    assert not outcome.passed and children(os.getpid()) == before


EXIT = ["import sys\nsys.exit(0)", "raise SystemExit(0)", "import os\nos._exit(0)"]


@pytest.mark.parametrize("code", EXIT)
def test_leaving_early_is_no_pass(code: str) -> None:
    """Leaving with status 0 is called that, at once and from inside a test."""
    late = "def double(n):\n" + "\n".join(f"    {line}" for line in code.splitlines())
    assert [passes(text, TESTS) for text in (code, late)] == [Outcome(False, "called exit")] * 2


FORGERS = {
    "equals all": "class Yes(int):\n    def __eq__(self, other):\n        return True\n    __hash__ = None\n"
    "def double(n):\n    return Yes(7)",
    "object equals all": "class Yes:\n    __eq__ = lambda self, other: True\ndef double(n):\n    return Yes()",
    "builtins": "import builtins\nbuiltins.AssertionError = SystemExit\nbuiltins.print('passed')\n"
    "for name in ('eval', 'exec', 'compile', 'isinstance', 'repr', 'str', 'hasattr'):\n"
    "    setattr(builtins, name, lambda *a, **k: '4')",
    "runner": "import sys\nmain = sys.modules['__main__']\nmain._step = lambda *a: 'done'\n"
    "main.plain = lambda value: 'done'",
    "protocol": "import os\nfor n in (1, 2, 3, 4):\n    os.write(n, b'done\\nTrue\\nTrue\\n')\nos._exit(0)",
    "exit handler": "import atexit, os\natexit.register(os._exit, 0)\nimport sys\nsys.stdout = sys.stderr = None",
    "trace": "import sys\nsys.settrace(lambda *a: None)\nsys.excepthook = print\n__name__ = '__main__'",
}  # fmt: skip


@pytest.mark.parametrize("code", FORGERS.values(), ids=FORGERS)
def test_a_pass_cannot_be_forged(code: str) -> None:
    """Objects that equal everything, patched builtins, a patched runner and written results pass no test."""
    for tests in ("assert double(2) == 4\nassert double(3) == 6", "assert double(2) is None\nassert not double(0)"):
        assert not passes(code, tests).passed


HUNTER = """
import gc, os, re, sys
def double(n):
    seen, frame = [sys.argv, sys.orig_argv, dict(os.environ), gc.get_objects()], sys._getframe()
    while frame:
        seen += [frame.f_locals, frame.f_globals, frame.f_code.co_consts]
        frame = frame.f_back
    for fd in (0, 3, 4, 5):
        try:
            seen.append(os.read(fd, 9999) if fd == 0 else b"")
        except OSError:
            pass
    text = " ".join(map(repr, seen))
    assert "double" in text and "is-asked" in text
    return re.search("(is-kept|$)", text.replace("(is-kept|$)", "")).group()
"""


def test_what_is_expected_is_nowhere_in_the_child() -> None:
    """Frames, objects, arguments, environment and input hold what the tests ask, and not what they expect."""
    hidden = HUNTER.replace("is-kept", "is-" + "[k]ept")
    assert passes(hidden, "assert double('is-asked') == 'is-kept'").why.endswith("(got '')")
    assert passes(hidden, "kept = 'is-kept'\nassert double('is-asked') == 'is-kept'").passed  # the hunt does find


def test_the_child_dies_with_its_parent() -> None:
    """When the process that waits for an answer is killed, the answer's endless loop ends too."""
    parent = in_new_python("from temper.eval.sandbox import passes; passes('while True: pass', 'assert 1', 60)")
    deadline = time.monotonic() + 20
    while not (found := children(parent.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)  # until it has set its death signal
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    while (alive := [pid for pid in found if Path(f"/proc/{pid}/exe").exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found and not alive


WITHOUT_LANDLOCK = """
import ctypes, struct
from temper.eval import confine, sandbox
from temper.errors import MachineError
rules = [(0x20, 0, 0, 0), *confine._rule(444, (), confine._ENOSYS), (0x06, 0, 0, confine._ALLOW)]
text = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *rule) for rule in rules))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, struct.pack("@HP", len(rules), ctypes.addressof(text)), 0, 0) == 0
print(sandbox.available())
try:
    print(sandbox.passes("", "assert 1"))
except MachineError as error:
    print(error)
"""


def test_without_landlock_nothing_runs() -> None:
    """On a kernel that has no Landlock the answer is not run: an error says what is missing and what it takes."""
    said = in_new_python(WITHOUT_LANDLOCK).communicate(timeout=60)[0].splitlines()
    assert len(said) == 2 and said[0] == said[1]
    assert said[0].startswith("the sandbox does not start: the kernel refuses Landlock: Function not implemented; code")


def test_the_first_fenced_block_is_the_code() -> None:
    """A fence with or without a language, an unclosed one, and no fence at all."""
    for answer in (f"Here:\n\n```python\n{RIGHT}```\nor ```x```", f"```\n{RIGHT}", RIGHT, f"```Python 3\n{RIGHT}```"):
        assert code_of(answer) == RIGHT
