"""What the data stage is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

# In the order they are done. All but read and write can be left out.
STEPS = ("read", "normalise", "personal", "exact", "near", "split", "tokens", "checks", "report", "write")
FIELDS = ("instruction", "input", "output", "system", "history")


@dataclass(frozen=True)
class Options:
    """Settings of one run, the same for every worker."""

    columns: Mapping[str, str | None] = field(default_factory=dict)  # of FIELDS; left out or None: found by name
    encoding: str = "auto"
    system: str = ""  # for every row that has none
    eval_share: float = 0.1  # of the questions, 0 to 1
    max_rejected: float = 0.005  # of the rows, 0 to 1
    personal: str = "report"  # or mask, drop
    max_chars: int = 100_000  # longest question or answer, characters
    steps: frozenset[str] = frozenset(STEPS)
    model: Path | None = None  # folder of the base model whose tokenizer counts; None: no counts
    model_name: str = ""
    cutoff_len: int = 1024  # tokens that training keeps of a row
    engine: str = "local"  # or ray
    workers: int = 0  # processes; 0: as many as there are cores

    def does(self, step: str) -> bool:
        """Say whether a step is switched on."""
        return step in self.steps
