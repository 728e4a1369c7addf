"""A copy of the repository that a test may change, and `make` in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STUB = Path(__file__).with_name("stub_temper.py")
STAGES = ["model", "data", "train", "merge"]
PARTS = (".gitignore", "Makefile", "scripts", "configs", "data", "docker/locks")
TOKENIZER = {  # words and marks, of which no text has one that it knows but the template's own
    "version": "1.0",
    "added_tokens": [
        {"id": number, "content": content, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for number, content in enumerate(("<|im_start|>", "<|im_end|>"), 1)
    ],
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "WordLevel", "vocab": {"?": 0, "<|im_start|>": 1, "<|im_end|>": 2}, "unk_token": "?"},
}
CHAT = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
NOT_OURS = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHONPATH", "WAIT")  # of a make that runs the tests


@dataclass(frozen=True)
class Made:
    """How a make ended: `code` is the exit code of the program that failed, 0 if none did."""

    code: int
    out: str
    err: str
    ran: list[str]  # the stages whose bodies ran, in order


def content(folder: Path) -> dict[str, bytes]:
    """Return what a result is: every file but those about the run that made it; empty where there is none."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("run."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@dataclass
class Repo:
    """A scratch copy of the repository."""

    root: Path
    real: bool = False  # real stage bodies
    env: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()  # a command that make runs under

    @property
    def build(self) -> Path:
        """Where everything made lies."""
        return self.root / "build"

    @property
    def here(self) -> Path:
        """The results of the default scenario and profile."""
        return self.build / "customer-service" / "cpu"

    @property
    def rows(self) -> Path:
        """The default scenario's raw rows."""
        return self.root / "data" / "customer-service" / "rows.csv"

    @property
    def scenario(self) -> Path:
        """The default scenario's file."""
        return self.root / "configs" / "scenarios" / "customer-service.yaml"

    def results(self) -> dict[str, Path]:
        """Return each stage's result folder."""
        return {
            "model": self.build / "models" / "smollm2-135m",
            "data": self.here / "data",
            "train": self.here / "adapter",
            "merge": self.here / "merged",
        }

    def inputs(self) -> list[Path]:
        """Return every file the default scenario reads."""
        names = (
            "configs/scenarios/customer-service.yaml",
            "configs/profiles/cpu.yaml",
            "configs/models/smollm2-135m.yaml",
            "configs/models/smollm2-135m.sha256",
            "data/customer-service/rows.csv",
            "docker/locks/cpu.txt",
        )
        return [self.root / name for name in names]

    def contents(self) -> dict[str, dict[str, bytes]]:
        """Return what each stage's result is."""
        return {stage: content(folder) for stage, folder in self.results().items()}

    def command(self, *words: str, **settings: str) -> list[str]:
        """Return the command line of a make; `settings` are its variables."""
        if not self.real:
            settings.setdefault("TEMPER", f"{sys.executable} {STUB}")
        return [*self.prefix, "make", *words, *(f"{name}={value}" for name, value in settings.items())]

    def environment(self) -> dict[str, str]:
        """Return what make runs under."""
        kept = {name: value for name, value in os.environ.items() if name not in NOT_OURS}
        return {**kept, "STUB_LOGS": str(self.root), "OMP_NUM_THREADS": "1", **self.env}

    def start(self, *words: str, **settings: str) -> subprocess.Popen[str]:
        """Start a make in a process group of its own."""
        return subprocess.Popen(
            self.command(*words, **settings),
            cwd=self.root,
            env=self.environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def make(self, *words: str, **settings: str) -> Made:
        """Run make to its end."""
        before = len(self.ran())
        with self.start(*words, **settings) as process:
            try:
                out, err = process.communicate(timeout=300)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        failed = re.findall(r"Error (\d+)", err)
        code = int(failed[0]) if failed else process.returncode
        return Made(code, out, err, self.ran()[before:])

    def merge(self, **settings: str) -> list[str]:
        """Make the merged model, which must succeed; return the stages whose bodies ran, each at most once."""
        made = self.make("merge", **settings)
        assert made.code == 0, made.out + made.err
        assert len(made.ran) == len(set(made.ran)), made.ran
        return sorted(made.ran, key=STAGES.index)

    def start_until(self, line: str, *words: str, **settings: str) -> subprocess.Popen[str]:
        """Start a make and return when it has printed a line that starts with `line`, or has ended."""
        process = self.start(*words, **settings)
        assert process.stdout
        while (said := process.stdout.readline()) and not said.startswith(line):
            pass
        return process

    def ran(self) -> list[str]:
        """Return every stage whose body has run."""
        return self._lines("ran.log")

    def asked(self, *words: str, **settings: str) -> list[str]:
        """Run make, which must succeed, and return what it started Python for, as "look" or "stage data"."""
        before = len(self._lines("asked.log"))
        made = self.make(*words, **settings)
        assert made.code == 0, made.out + made.err
        return self._lines("asked.log")[before:]

    def _lines(self, name: str) -> list[str]:
        log = self.root / name
        return log.read_text().splitlines() if log.exists() else []

    def edit(self, path: Path, old: str, new: str) -> None:
        """Replace `old`, which must be there, in a file."""
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{path} has no {old!r}"
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    def set_key(self, path: Path, key: str, value: object) -> str:
        """Give a key of a YAML file, which must be there, another value; return the one it had."""
        text = path.read_text(encoding="utf-8")
        old = re.search(rf"^ +{key}: *([^ #\n]+)", text, re.M)
        assert old, f"{path} has no {key}"
        assert old[1] != str(value)
        path.write_text(text[: old.start(1)] + str(value) + text[old.end(1) :], encoding="utf-8")
        return old[1]


def copy(root: Path, **settings: Any) -> Repo:
    """Copy what make needs into `root`, with an environment that borrows the packages of the one running the tests."""
    for part in PARTS:
        source, target = ROOT / part, root / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy2(source, target)
    _environment(root / ".venv")
    return Repo(root, **settings)


def tokenizer(folder: Path, **named: str) -> None:
    """Write a tokenizer with a chat template, as a model folder has them; `named` goes to tokenizer_config.json."""
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "chat_template": CHAT, **named})
    )


def small_model(repo: Repo) -> None:
    """Let the default base model come from a folder beside the repository, of a tokenizer and no tensor."""
    folder = repo.root.with_name("small model")
    folder.mkdir()
    tokenizer(folder)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    file = repo.root / "configs" / "models" / "smollm2-135m.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(re.sub("^source: .*$", f"source: {{path: {folder}}}", text, flags=re.M), encoding="utf-8")
    file.with_suffix(".sha256").unlink()


def twin(repo: Repo, root: Path) -> Repo:
    """Copy a repository with its results."""
    shutil.copytree(repo.root, root, symlinks=True)
    return Repo(root, repo.real, dict(repo.env))


def _environment(venv: Path) -> None:
    """Make a .venv whose own folder takes what an install writes, so that the borrowed one stays as it is."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = venv / "lib" / version / "site-packages"
    site.mkdir(parents=True)
    (venv / "bin").mkdir()
    borrowed = Path(sys.executable).parent
    for name in ("python", "llamafactory-cli"):
        (venv / "bin" / name).symlink_to(borrowed / name if name != "python" else Path(sys.executable).resolve())
    (venv / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).resolve().parent}\n")
    (site / "borrowed.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    lock = "docker/locks/cpu.txt"
    digest = subprocess.run(["sha256sum", lock], cwd=venv.parent, capture_output=True, text=True, check=True).stdout
    (venv / "installed").write_text(digest)
