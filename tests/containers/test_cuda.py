"""temper-cuda where it has been built: it is too large for every run, so its lock is what is always checked."""

from __future__ import annotations

import boxes
import pytest

from temper.images import pinned

pytestmark = [pytest.mark.slow, pytest.mark.containers]
IMPORTS = """
import torch, torchvision, torchaudio, bitsandbytes, deepspeed, liger_kernel.transformers, llamafactory.train.tuner
print(torch.version.cuda, deepspeed.__version__, bitsandbytes.__version__)
"""


def test_everything_imports_without_a_gpu() -> None:
    """In the recorded image, read-only and as nobody, all of it imports, and llamafactory-cli and cc run."""
    tag = f"localhost/temper-cuda:{pinned.read()['temper-cuda']['image'][7:25]}"
    if boxes.run("docker", "image", "inspect", tag).returncode:
        pytest.skip(f"{tag} is not loaded here; make image IMAGE=temper-cuda RUNTIME=docker")
    box = ["docker", "run", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp:exec", "--user=1234:1234"]
    box += ["--cap-drop=ALL", "--hostname=localhost", tag]
    done = boxes.run(*box, "python3", "-c", IMPORTS)
    assert done.stdout.splitlines()[-1].startswith("13.0 0.19.8 0.50.2"), done.stderr[-2000:]
    assert "0.9.5" in boxes.run(*box, "llamafactory-cli", "version").stdout
    assert boxes.run(*box, "cc", "--version").returncode == 0
