"""Weight parity by tensors: every merged tensor is base + scale * B @ A, computed here in float32.

Models above WHOLE_BYTES are compared on a sample of rows of every tensor; nothing larger than a tensor is held.
Covered: LoRA and rsLoRA on linear modules; for anything more (DoRA, trained embeddings) see logits.py.

Bound. u is the unit roundoff of the merged dtype. A merged element m with exact value e = w + d may have been rounded
when d was formed (twice: product and scale) and when the sum was: |m - e| <= u|e| + 2u|d|, and u|w| more when the base
was first cast to the merged dtype. Measured on SmolLM2-135M in bfloat16: 0.99 of the bound, as one rounding must.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper.merge import lora, served, shards, weight_files
from temper.merge.outcome import Outcome, judged, passed

WHOLE_BYTES = 2_000_000_000  # of weights at two bytes a parameter
SAMPLE_ROWS = 64
ROUNDOFF = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24}  # unit roundoff
HALF_SUBNORMAL = {"bfloat16": 0.0, "float16": 2.0**-25, "float32": 0.0}  # float16 rounds below 2^-14 absolutely
RETRAIN = "train again, and look at the loss curve"
AGAIN = "delete the merged folder and merge again"


@dataclass(frozen=True)
class Update:
    """One adapted module: the factors' names in the adapter file, their rank, and the scale of B @ A."""

    a: str
    b: str
    rank: int
    scale: float


@dataclass(frozen=True)
class Adapter:
    """A plain LoRA adapter: weight name to update. Read here and not by the merge's code, which is what is checked."""

    file: Path
    updates: dict[str, Update]
    transposed: bool  # the base stores its linear weights [in, out]


def read_adapter(folder: Path, model_type: str) -> Adapter:
    """Return what a plain LoRA or rsLoRA adapter changes."""
    file, config = folder / lora.FILE, served.read(folder, lora.CONFIG)
    header, updates = shards.tensors(file), {}
    for name, tensor in header.items():
        if name.endswith(".lora_A.weight"):
            module, rank = name.removeprefix(lora.PREFIX).removesuffix(".lora_A.weight"), tensor.shape[0]
            b = name.replace(".lora_A.", ".lora_B.")
            updates[f"{module}.weight"] = Update(name, b, rank, _scale(config, module, rank))
    return Adapter(file, updates, model_type in lora.CONV1D)


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    """Return alpha / r, or alpha / sqrt(r) for rsLoRA, with the module's own alpha if a pattern gives one."""
    import re

    patterns = config.get("alpha_pattern") or {}
    own = next((alpha for pattern, alpha in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)), None)
    alpha = config["lora_alpha"] if own is None else own
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def is_small(merged: Path) -> bool:
    """Tell whether a model is compared whole."""
    return weight_files.parameters(weight_files.tensors(merged)) * 2 <= WHOLE_BYTES


class _Reader:
    """Rows of named tensors in a folder's safetensors files; files are opened once and mapped, not read."""

    def __init__(self, folder: Path) -> None:
        self.entries, self.files = weight_files.tensors(folder), dict[Path, Any]()

    def rows(self, name: str, start: int, stop: int) -> Any:
        """Return rows [start, stop) of a tensor; a tensor of no dimension whole."""
        from safetensors import safe_open

        file = self.entries[name].file
        if file not in self.files:
            self.files[file] = safe_open(str(file), framework="pt")
        if not self.entries[name].shape:
            return self.files[file].get_tensor(name)
        return self.files[file].get_slice(name)[start:stop]


def _blocks(rows: int, whole: bool) -> Iterator[tuple[int, int]]:
    """Yield row ranges: all rows, or SAMPLE_ROWS of them in four blocks from the first row to the last."""
    if whole or rows <= SAMPLE_ROWS:
        yield 0, rows
        return
    size = SAMPLE_ROWS // 4
    for block in range(4):
        start = block * (rows - size) // 3
        yield start, start + size


@dataclass
class _Tally:
    """What was seen while comparing tensors."""

    elements: int = 0
    changed: int = 0
    adapted: int = 0
    worst: float = 0.0  # error over bound, 1 is the limit
    zero: int = 0  # modules whose update is nothing but zeros
    dtype: str = ""


def check_tensors(base: Path, adapter: Path, merged: Path) -> Outcome:
    """Compare merged tensors with base + scale * B @ A in float32, within the rounding of the merged dtype."""
    if beyond := lora.beyond(adapter):
        return passed("weights", f"left to the logits, for the adapter is more than plain LoRA: {beyond}", way="logits")
    found = read_adapter(adapter, served.read(base, "config.json").get("model_type", ""))
    old, new, whole, tally = _Reader(base), _Reader(merged), is_small(merged), _Tally()
    problems = [
        f"the adapter changes {name}, which the models do not both have"
        for name in found.updates
        if name not in old.entries or name not in new.entries
    ]
    if not problems:
        names = sorted(new.entries.keys() & old.entries.keys())
        problems = [said for name in names if (said := _compare(old, new, name, found, whole, tally))]
    remedy = AGAIN
    if tally.zero == len(found.updates):
        problems, remedy = ["every lora_B is zero: the adapter was never trained"], RETRAIN
    elif tally.adapted and not tally.changed:
        problems = ["the merged weights are the base model's: the adapter is not in them"]
        remedy = f"{AGAIN}; with merge.dtype: float32 if the adapter is too small for {tally.dtype}"
    shown = problems[:3] + ([f"{len(problems) - 3} more"] if len(problems) > 3 else [])
    share = tally.changed / tally.adapted if tally.adapted else 0.0
    rows = "all rows" if whole else f"{SAMPLE_ROWS} rows of each"
    counts = f"{len(found.updates)} of {len(new.entries)}"
    return judged(
        "weights",
        shown,
        remedy,
        f"{counts} tensors are base + scale * B @ A "
        f"({tally.worst:.2f} of the rounding bound), {share:.0%} of their elements changed; {rows} compared",
        way="tensors",
        rows="all" if whole else SAMPLE_ROWS,
        elements=tally.elements,
        adapted=len(found.updates),
        changed_share=round(share, 4),
        worst_of_bound=round(tally.worst, 3),
    )


def _compare(old: _Reader, new: _Reader, name: str, found: Adapter, whole: bool, tally: _Tally) -> str:
    """Compare one tensor block by block; return what is wrong in words, or nothing."""
    import torch

    update, worst, zero = found.updates.get(name), 0.0, True
    for start, stop in _blocks(min((old.entries[name].shape or (1,))[0], (new.entries[name].shape or (1,))[0]), whole):
        before, after = old.rows(name, start, stop), new.rows(name, start, stop)
        tally.elements, tally.dtype = tally.elements + after.numel(), str(after.dtype).removeprefix("torch.")
        if not torch.isfinite(after).all():
            return f"{name} holds NaN or infinity"
        same = before.to(after.dtype)
        if update is None:
            if not torch.equal(same, after):
                return f"{name} is not adapted, but differs from the base model's"
            continue
        delta, slack = _delta(found, update, start, stop)
        zero = zero and not bool(delta.any())
        tally.adapted, tally.changed = tally.adapted + after.numel(), tally.changed + int((same != after).sum())
        error = _error(before, after, delta, slack)
        worst = max(worst, error)
    tally.zero += int(update is not None and zero)
    tally.worst = max(tally.worst, worst)
    return f"{name} is {worst:.1f} times the rounding bound away from base + scale * B @ A" if worst > 1 else ""


def _delta(found: Adapter, update: Update, start: int, stop: int) -> tuple[Any, float]:
    """Return rows of scale * B @ A in float32 [rows, columns], and the error its own sums can have."""
    from safetensors import safe_open

    with safe_open(str(found.file), framework="pt") as file:
        a, b = file.get_tensor(update.a).float(), file.get_tensor(update.b).float()
    product = (a.T[start:stop] @ b.T) if found.transposed else (b[start:stop] @ a)
    slack = (update.rank + 2) * ROUNDOFF["float32"] * update.rank * float(a.abs().max() * b.abs().max())
    return product * update.scale, slack * update.scale


def _error(before: Any, after: Any, delta: Any, slack: float) -> float:
    """Return the largest error over its bound; see the module's docstring."""
    dtype = str(after.dtype).removeprefix("torch.")
    unit, exact = ROUNDOFF[dtype], before.float() + delta
    bound = (unit + ROUNDOFF["float32"]) * exact.abs() + 2 * unit * delta.abs() + slack + 3 * HALF_SUBNORMAL[dtype]
    if before.dtype != after.dtype:
        bound += unit * before.float().abs()
    return float(((after.float() - exact).abs() / bound.clamp_min(1e-38)).max())
