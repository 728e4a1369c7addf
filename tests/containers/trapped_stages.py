"""Run data, train and merge in containers whose name look-ups are trapped: trapped_stages.py ENGINE COUNT_FILE."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from temper import paths, pipeline, runtime, stage
from temper.config import resolve
from temper.containers import Container

engine, count = sys.argv[1], Path(sys.argv[2])
paths.enter_root()
resolv = count.with_name("resolv.conf")
resolv.write_text("nameserver 127.0.0.1\n")
real = runtime.box
PORT_53 = "--sysctl=net.ipv4.ip_unprivileged_port_start=0"  # Docker's default; the trap has no capabilities


def trapped(config: dict[str, Any], reference: str, argv: list[str]) -> Container:
    """Return the container that the product makes, with the trap in front of its program."""
    box = real(config, reference, argv)
    first, program = list(box.command[:3]), list(box.command[3:])
    trap = ["python3", str(Path(__file__).with_name("trap_lookups.py")), str(count)]
    return replace(box, command=[*first, *trap, *program], at={resolv: "/etc/resolv.conf"}, more=(*box.more, PORT_53))


runtime.box = trapped  # type: ignore[assignment]
settings = "train.max_steps=4 train.max_samples=16 train.num_train_epochs=1"
config = {**resolve.resolve("customer-service", "cpu", "", settings), "runtime": engine}
for name in ("data", "train", "merge"):
    made = pipeline.stage(name, config)
    watch = pipeline.state("customer-service", "cpu") / f"{name}.paths"
    stage.bring_up_to_date(made, pipeline.lock(config), watch, print)
