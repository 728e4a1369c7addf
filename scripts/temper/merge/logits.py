"""Weight parity by logits: the merged model and PEFT's own base + adapter read the same tokens.

Done for models up to weights.WHOLE_BYTES, in float32, and for adapters that weights.py does not cover, in the merged
dtype above that size. One model is in memory at a time.

Bound. Rounding a matrix to a dtype of unit roundoff u adds noise of relative size u/sqrt(3) to what it computes, in
random directions; over the layers these add up as a random walk: |difference| <= FACTOR * u * max|logit|.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from temper.merge.outcome import Outcome, failed, judged
from temper.merge.weights import AGAIN, RETRAIN, ROUNDOFF

# Measured on SmolLM2-135M, 30 layers, all linear modules adapted: 2.4 merged in bfloat16, 1.6 in float16; computed in
# bfloat16 instead of float32: 8.9. Room is left for models with outliers; small faults are for the tensors to show.
FACTOR = 16.0
FLOAT32_SUMS = 1e-5  # of max|logit|: sums in another order; measured 2.8e-6


def load_model(folder: Path, dtype: str = "float32") -> Any:
    """Load a folder for inference; on a GPU when there is one."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=getattr(torch, dtype))
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def compute(model: Any, sequences: list[list[int]]) -> Any:
    """Return float32 logits [sequences, length, vocabulary] on the CPU; all sequences have one length."""
    import torch

    with torch.inference_mode():
        ids = torch.tensor(sequences, device=model.device)
        return model(input_ids=ids, use_cache=False).logits.float().cpu()


def adapted(base: Path, adapter: Path, sequences: list[list[int]], dtype: str = "float32") -> tuple[Any, Any]:
    """Return the logits of the base model, and of base + adapter computed by PEFT without merging."""
    from peft import PeftModel

    model = load_model(base, dtype)
    before = compute(model, sequences)
    tuned = PeftModel.from_pretrained(model, str(adapter)).eval()
    after = compute(tuned, sequences)
    del model, tuned
    gc.collect()
    return before, after


def check(
    base: Path, adapter: Path, merged: Any, sequences: list[list[int]], stored: str, dtype: str = "float32"
) -> Outcome:
    """Compare a merged model's logits with base + adapter's.

    `merged`: what `compute` gives for it; `stored`: the dtype of its weights; `dtype`: what all three are computed in.
    """
    before, tuned = adapted(base, adapter, sequences, dtype)
    if not merged.isfinite().all():
        return failed("logits", "the merged model's logits hold NaN or infinity", RETRAIN, way="logits")
    error, effect, top = (
        float(value) for value in ((merged - tuned).abs().max(), (tuned - before).abs().max(), tuned.abs().max())
    )
    bound = max(FACTOR * max(ROUNDOFF[stored], ROUNDOFF[dtype]), FLOAT32_SUMS) * top
    problems, remedy = [], AGAIN
    if effect == 0:
        problems, remedy = ["the adapter changes no logit: it was never trained"], RETRAIN
    elif error > bound:
        problems.append(f"merged and base + adapter differ by {error:.3g} in a logit, more than {bound:.3g}")
    elif bool((merged == before).all()):
        problems.append("the merged model's logits are the base model's")
    return judged(
        "logits",
        problems,
        remedy,
        f"differ from base + adapter by {error:.2g} at most (bound {bound:.2g}); "
        f"the adapter moves them by {effect:.2g}",
        way="logits",
        error=float(f"{error:.2g}"),
        bound=float(f"{bound:.2g}"),
        effect=float(f"{effect:.2g}"),
        max_logit=float(f"{top:.3g}"),
    )
