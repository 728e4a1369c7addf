"""Everything under configs/ is right as shipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from config_site import ROOT, leaves

from temper.config import cached, resolve
from temper.data import process
from temper.data.options import Options
from temper.models.spec import Shape

SERVICE, CODE, FINANCE = "customer-service", "code-generation", "financial-qa"


def shipped(kind: str) -> list[str]:
    """Name every file of a kind, in whatever folder below it."""
    folder = ROOT / "configs" / kind
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


SCENARIOS, PROFILES, MODELS = shipped("scenarios"), shipped("profiles"), shipped("models")


def test_there_is_something_to_check() -> None:
    """The three scenarios, four profiles and the models they name are found; an empty search cannot pass."""
    assert {SERVICE, CODE, FINANCE} <= set(SCENARIOS)
    assert {"cpu", "gpu-24g", "gpu-80g", "multi-node"} <= set(PROFILES)
    assert {"smollm2-135m", "qwen3-4b-instruct", "codellama-7b", "glm-4-9b-0414"} <= set(MODELS)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_resolves_with_every_profile(
    scenario: str, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shipped scenario is valid on every kind of machine, and says for each of its keys where the value is from."""
    monkeypatch.chdir(ROOT)
    config = resolve.resolve(scenario, profile)
    assert (config["scenario"], config["profile"]) == (scenario, profile)
    assert config["model"]["name"] in MODELS
    assert all((ROOT / file).is_file() for file in config["files"])
    own = yaml.safe_load((ROOT / f"configs/scenarios/{scenario}.yaml").read_text(encoding="utf-8"))
    files = {f"configs/scenarios/{scenario}.yaml", f"configs/profiles/{profile}.yaml"}
    assert {config["origins"].get(key) for key in leaves(own)} <= files


@pytest.mark.parametrize("model", MODELS)
def test_every_model_resolves_in_place_of_the_scenarios(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each model file is valid, can be asked for with MODEL, and its shape has the parameters it states."""
    monkeypatch.chdir(ROOT)
    _, spec = resolve.load_model(model)
    config = resolve.resolve("customer-service", "gpu-80g", model, "" if spec.tgi else "serve.engine=vllm")
    assert config["model"]["name"] == model
    assert config["origins"]["model"] == "MODEL"
    assert Shape.model_validate(config["model"]["shape"]).parameters() == config["model"]["parameters"]


@pytest.mark.parametrize("kind", ["scenarios", "profiles", "models"])
def test_every_file_opens_with_what_it_is_for(kind: str) -> None:
    """The first line of each file is a comment that `make help` can show."""
    for name in shipped(kind):
        first = (ROOT / f"configs/{kind}/{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# ") and len(first) > 20, name


def test_scenarios_are_what_they_were_asked_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapter, length, rank, base model and temperature of the three scenarios are those their users were promised."""
    monkeypatch.chdir(ROOT)
    service, code, finance = (resolve.resolve(name, "gpu-24g") for name in (SERVICE, CODE, FINANCE))
    assert service["model"]["source"]["huggingface"] == "Qwen/Qwen3-4B-Instruct-2507"
    assert code["model"]["source"]["huggingface"] == "Qwen/Qwen2.5-Coder-7B-Instruct"
    assert finance["model"]["source"]["huggingface"] == "Qwen/Qwen2.5-14B-Instruct"
    assert [config["train"]["cutoff_len"] for config in (service, code, finance)] == [1024, 4096, 2048]
    assert code["train"]["quantization_bit"] == 4 and "quantization_bit" not in service["train"]
    assert service["train"]["lora_rank"] < min(code["train"]["lora_rank"], finance["train"]["lora_rank"])
    assert 0 < code["ask"]["temperature"] <= 0.2


def test_questions_to_show_are_in_the_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each question that quickstart asks is one of the rows that are trained on, not held out and not cut off."""
    monkeypatch.chdir(ROOT)
    for name in SCENARIOS:
        config = resolve.resolve(name, "cpu")
        data, out = config["data"], tmp_path / name
        options = Options(
            columns=data["columns"],
            encoding=data["encoding"],
            system=data["system"] or "",
            eval_share=data["eval_share"],
            steps=frozenset({"read", "normalise", "exact", "near", "split", "write"}),
        )
        process.process([Path(path) for path in cached.listed(data["path"])], out, options)
        lines = (out / "train.jsonl").read_text(encoding="utf-8").splitlines()
        used = [json.loads(line)["instruction"] for line in lines[: config["train"].get("max_samples")]]
        assert config["ask"]["show"], name
        assert set(config["ask"]["show"]) <= set(used), name
