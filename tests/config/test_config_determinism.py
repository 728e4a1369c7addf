"""What decides the bits of a result is set by the configuration, and not by the shell that calls make."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from config_site import ROOT

from temper import determinism, pipeline, runtime
from temper.config import resolve
from temper.errors import ConfigError
from temper.train import machine, settings

SHOW = "import os; print({name: os.environ.get(name) for name in %r})"


def config(overrides: str = "", profile: str = "cpu") -> dict[str, object]:
    """Return a resolved configuration of a shipped scenario."""
    return {**resolve.resolve("customer-service", profile, "", overrides), "runtime": "local"}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the repository."""
    monkeypatch.chdir(ROOT)


def seen(asked: dict[str, object], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> dict[str, str | None]:
    """Return the variables that a stage's program finds."""
    program = tmp_path / "show.py"
    program.write_text(SHOW % (sorted({*determinism.NOT_INHERITED, *determinism.CPU, "PYTHONHASHSEED"}),))
    assert runtime.run(asked, program) == 0
    return dict(eval(capfd.readouterr().out))


def test_a_shells_settings_do_not_reach_a_stage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Variables that change results are taken away from a stage's program; the hash seed is fixed."""
    for name in determinism.NOT_INHERITED:
        monkeypatch.setenv(name, "1")
    found = seen(config(), tmp_path, capfd)
    assert {name: value for name, value in found.items() if value is not None} == {
        "PYTHONHASHSEED": "0",
        **determinism.variables(config()),  # and what the stage sets itself
    }


def test_portable_sets_what_every_cpu_does_alike(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """DETERMINISTIC=portable gives the program the compatible modes, and training float32 and the fused AdamW."""
    asked = config("determinism=portable")
    found = seen(asked, tmp_path, capfd)
    assert {name: found[name] for name in determinism.CPU} == determinism.CPU
    arguments = settings.resolved(asked, Path("base"), Path("data"), Path("out"))
    assert (arguments["bf16"], arguments["optim"]) == (False, "adamw_torch_fused")
    gpu = config("determinism=portable", "gpu-24g")
    arguments = settings.resolved(gpu, Path("base"), Path("data"), Path("out"))
    assert (arguments["full_determinism"], arguments["flash_attn"]) == (True, "disabled")
    assert determinism.variables(gpu)["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_result_follows_from_it_only_where_it_is_asked_for() -> None:
    """Train and merge are made again when it is turned on; without it their sections are as before."""
    for name in ("train", "merge"):
        assert "determinism" not in pipeline.stage(name, config()).config
        assert pipeline.stage(name, config("determinism=portable")).config["determinism"] == "portable"
    assert "determinism" not in pipeline.stage("data", config("determinism=portable")).config


def test_a_narrow_number_format_is_refused_with_it() -> None:
    """bfloat16 is computed otherwise by other types of CPU, so asking for both is an error that names both ways out."""
    with pytest.raises(ConfigError, match=r"train.bf16: is not portable between types of CPU; leave it out, or"):
        config("determinism=portable train.bf16=true")
    with pytest.raises(ConfigError, match="determinism: 'always'"):
        config("determinism=always")


def test_make_passes_it_on(tmp_path: Path) -> None:
    """`make DETERMINISTIC=portable` is the setting."""
    words = ["make", "-n", "plan", "DETERMINISTIC=portable"]
    shown = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "determinism=portable" in shown


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (root@host)", "570.86.15"),
        ("GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)", None),
    ],
)
def test_the_driver_s_version_is_read(line: str, version: str | None, tmp_path: Path) -> None:
    """A result from a GPU records the driver, whose kernel module says which it is."""
    (tmp_path / "version").write_text(f"{line}\n")
    assert machine.driver(tmp_path / "version") == version
    assert machine.driver(tmp_path / "absent") is None


def test_runtime_nix_is_a_nix_build_s_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Outside of one a stage would run in this environment and say that it had run in the image: refused."""
    monkeypatch.delenv("NIX_BUILD_TOP", raising=False)
    with pytest.raises(ConfigError, match="RUNTIME=nix is none of local, docker and podman"):
        runtime.run({**config(), "runtime": "nix"}, tmp_path / "absent.py")
