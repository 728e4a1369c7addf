"""A commented scenario for the user's own file."""

from __future__ import annotations

import re
from pathlib import Path

from temper.data import records
from temper.errors import DataError, UsageError
from temper.paths import CONFIGS

TEMPLATE = """\
# {scenario}: answers learnt from {file}.
# Make it:  make serve SCENARIO={scenario}    Ask it:  make ask SCENARIO={scenario} Q='…'
# What it would do and need, without doing it:  make plan SCENARIO={scenario}
description: ""
model: qwen3-4b-instruct             # for GPU profiles; PROFILE=cpu takes its own small model; `make` lists all

data:
  path: {path}
  columns: {{instruction: {instruction}, output: {output}}}
  eval_share: 0.1                    # share of questions held out for evaluation
  # system: "You are the assistant of …"    # then every client must send the same system prompt

train:                               # any argument of llamafactory-cli train can stand here
  finetuning_type: lora
  lora_target: all
  lora_rank: 16                      # size of the adapter; higher learns more and forgets more
  lora_alpha: 32
  cutoff_len: 1024                   # tokens; longer rows are cut
  per_device_train_batch_size: 4     # rows
  gradient_accumulation_steps: 2
  learning_rate: 2.0e-4
  lr_scheduler_type: cosine
  warmup_ratio: 0.05
  num_train_epochs: 4

serve:
  max_input_tokens: 1023
  max_total_tokens: 1280

ask:
  temperature: 0
  max_new_tokens: 128
"""


def write(scenario: str, source: str, instruction: str, output: str) -> list[str]:
    """Write configs/scenarios/SCENARIO.yaml for the file `source`; return the lines to print.

    Raises UsageError for a name that exists or cannot be a file name, DataError for a file or column that is not there.
    """
    path = CONFIGS / "scenarios" / f"{scenario}.yaml"
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", scenario):
        raise UsageError(f"SCENARIO={scenario} cannot name a file", "use small letters, digits, '-', '_' and '.'")
    if path.exists():
        raise UsageError(f"{path} exists", "choose another SCENARIO, or delete it")
    if not source:
        raise UsageError("there is no INPUT", "write make new SCENARIO=mine INPUT=my.csv")
    file = Path(source)
    encoding, columns = records.describe(file)
    chosen = [instruction or columns[0], output or columns[min(1, len(columns) - 1)]]
    if missing := [name for name in chosen if name not in columns]:
        raise DataError(
            f"{file}: there is no column {' and no '.join(missing)}",
            f"the columns are: {', '.join(columns)}; set INSTRUCTION_COL and OUTPUT_COL",
        )
    if chosen[0] == chosen[1]:
        raise DataError(
            f"{file}: {chosen[0]!r} cannot be both the question and the answer",
            f"the columns are: {', '.join(columns)}; set INSTRUCTION_COL and OUTPUT_COL",
        )
    import json

    quoted = [json.dumps(name, ensure_ascii=False) for name in chosen]
    path.write_text(
        TEMPLATE.format(
            scenario=scenario,
            file=file.name,
            path=json.dumps(str(file), ensure_ascii=False),
            instruction=quoted[0],
            output=quoted[1],
        ),
        encoding="utf-8",
    )
    return [
        f"new     {path}: {chosen[0]} -> {chosen[1]} from {file}{f' ({encoding})' if encoding else ''}",
        f"next:   make plan SCENARIO={scenario}, then make serve SCENARIO={scenario}",
    ]
