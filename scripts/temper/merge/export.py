"""Merge through `llamafactory-cli export`: for adapters that are more than LoRA on linear layers."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from temper import child
from temper.errors import DiskError, ModelError
from temper.merge import lora, shards, stream
from temper.paths import ROOT

LOG = "export.log"
ERROR = re.compile(r"[\w.]*(Error|Exception)\b")


@contextmanager
def scratch(out: Path) -> Iterator[Path]:
    """Give a folder on the same disk as `out` for what an export writes besides weights; it is deleted at the end."""
    work = out.with_name(f".{out.name}.export")
    shutil.rmtree(work, ignore_errors=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def export(
    base: Path,
    adapter: Path,
    out: Path,
    work: Path,
    template: str,
    dtype: str = "auto",
    max_shard_bytes: int = 5 * 10**9,
    arguments: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the merged weights into `out`; what LLaMA Factory writes besides stays in `work`.

    The whole model is held in memory. `dtype` "auto" keeps the base's, on every machine. `arguments` are further ones
    of LLaMA Factory's, such as resize_vocab, without which an adapter with new tokens does not load.
    Shards are at most `max_shard_bytes`, rounded down to whole GB, at least one.
    Returns the same figures as stream.merge, and "new_vocabulary": whether `work` holds a tokenizer of its own.
    Raises ModelError with the log's last line when LLaMA Factory fails, DiskError when there is no space left.
    """
    if not template:
        why = stream.covers(adapter, base)
        raise ModelError(
            f"{adapter} needs llamafactory-cli export ({why}), and no template is named",
            "name LLaMA Factory's template with --template",
        )
    _run(settings(base, adapter, work / "model", template, dtype, max_shard_bytes, arguments or {}), work)
    stream.clear(base, out)
    for path in sorted((work / "model").glob("model*.safetensors*")):
        os.replace(path, out / path.name)
        (out / path.name).chmod(0o644)  # the safetensors library writes 0600, which another uid cannot serve
    for path in (work / "model").iterdir():
        os.replace(path, work / path.name)
    return _figures(base, adapter, out, work)


def settings(
    base: Path, adapter: Path, into: Path, template: str, dtype: str, max_shard_bytes: int, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Return LLaMA Factory's arguments for an export."""
    return {
        "model_name_or_path": str(base),
        "adapter_name_or_path": str(adapter),
        "export_dir": str(into),
        "template": template,
        "infer_dtype": stream.base_dtype(base) if dtype == "auto" else dtype,
        "export_device": "cpu",
        "export_size": max(1, max_shard_bytes // 10**9),
        **arguments,
    }


def command(config: Path) -> list[str]:
    """Return the bare command that a person can run too."""
    return [str(Path(sys.executable).with_name("llamafactory-cli")), "export", str(config)]


def environment() -> dict[str, str]:
    """Return the variables an export runs under: offline, on the CPU, with the stand-in for torchaudio in reach."""
    path = [str(ROOT / "scripts/shims"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return child.environment(PYTHONPATH=os.pathsep.join(path), CUDA_VISIBLE_DEVICES="")


def _run(arguments: dict[str, Any], work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    config, log = work / "export.yaml", work / LOG
    config.write_text(json.dumps(arguments, indent=1) + "\n", encoding="utf-8")  # JSON is YAML
    code = child.run(command(config), environment(), log)
    if not code:
        return
    text = log.read_text(encoding="utf-8", errors="replace")
    if "No space left on device" in text or "os error 28" in text:
        raise DiskError("llamafactory-cli export stopped: no space left", "free some space, then run it again")
    said = [line.strip() for line in text.splitlines() if ERROR.match(line.strip())]
    raise ModelError(
        f"llamafactory-cli export ended with code {code}: {said[-1] if said else 'no message'}",
        "train plain LoRA (no train.use_dora or train.additional_target), or free memory if it was killed",
    )


def _figures(base: Path, adapter: Path, out: Path, work: Path) -> dict[str, Any]:
    made = shards.model(out)
    rows = [stream.config(folder).get("vocab_size") for folder in (base, work)]
    return {
        "dtype": shards.TORCH[shards.dtype(made)],
        "tensors": len(made),
        "merged_tensors": len(lora.targets(adapter)),
        "bytes": sum(tensor.size for tensor in made.values()),
        "shards": len({t.file for t in made.values()}),
        "zero_adapter": lora.check(adapter),
        "new_vocabulary": rows[0] != rows[1],
    }
