"""The data stage on a local Ray with two workers: the same functions over the same pieces, and the same bytes."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from temper.data import chunks, process
from temper.data.options import Options

WORDS = ["退货", "换货", "保修", "发票", "快递", "订单", "积分", "会员", "客服", "水壶", "空调", "维修", "安装", "退款"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")  # Ray warns of its own settings when it reads them
@pytest.mark.filterwarnings("ignore::FutureWarning:ray")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_ray_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Local processes and Ray Data with two workers write equal files, near-duplicates, rejects and report included."""
    monkeypatch.setattr(chunks, "SIZE", 1 << 17)
    monkeypatch.setattr(process, "BUCKET", 1 << 18)
    chance = random.Random(4)
    lines = ["id,问题,回答,主题"]
    for number in range(4000):
        question = "".join(chance.choices(WORDS, k=16)) + f"{number % 3500}号？"
        lines.append(
            f"{number},{question}{'?' * (number > 3800)},{'，'.join(chance.choices(WORDS, k=20))},{number % 7}"
        )
        if number % 90 == 0:
            lines.append(f"{number},{question},,")
            lines.append(lines[-2])
    (tmp_path / "rows.csv").write_text("\n".join(lines), encoding="utf-8")
    options = Options(columns={"instruction": "问题", "output": "回答"}, max_rejected=0.1, workers=2)
    made = {}
    try:
        for engine in ("local", "ray"):
            out = tmp_path / engine
            process.process([tmp_path / "rows.csv"], out, replace(options, engine=engine))
            made[engine] = {path.name: path.read_bytes() for path in sorted(out.iterdir())}
            if engine == "ray":
                import ray  # no sooner: what it listens on is settled when it is imported

                assert ray.is_initialized() and ray.cluster_resources()["CPU"] == 2
                assert {node["NodeManagerAddress"] for node in ray.nodes()} == {"127.0.0.1"}
    finally:
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()
    assert made["local"] == made["ray"]
    assert made["ray"]["duplicates.jsonl"].count(b'"exact"') == 45
    assert made["ray"]["rejected.jsonl"].count(b"\n") == 45
