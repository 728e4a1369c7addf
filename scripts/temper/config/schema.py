"""The sections of a scenario: every key with its type, bounds, unit and default."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from temper.data.options import STEPS

SKIPPABLE = tuple(step for step in STEPS if step not in ("read", "write"))


class Section(BaseModel):
    """Refuse unknown keys: a typo is an error, never a silent default."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class Columns(Section):
    """Which column of the raw rows holds what; those left out are found by their names."""

    instruction: str | None = Field(None, description="the question or request")
    input: str | None = Field(None, description="material that belongs to the request")
    output: str | None = Field(None, description="the answer to learn")
    system: str | None = Field(None, description="a system prompt per row")
    history: str | None = Field(None, description="earlier turns, a list of [question, answer]")


class Data(Section):
    """The raw rows and what is done with them."""

    path: Any = Field(description="a file or folder of rows, or a list of them; relative to the repository or absolute")
    eval_path: Any = Field(None, description="rows to evaluate on, in place of a share held out")
    columns: Columns = Field(default_factory=Columns)
    encoding: str = Field("auto", description="of the files; auto: UTF-8, GB18030 and UTF-16 are told apart")
    system: str | None = Field(None, description="one system prompt for every row that has none")
    eval_share: float = Field(0.1, ge=0, lt=1, description="share of questions held out, 0 to 1")
    max_rejected: float = Field(0.005, ge=0, le=1, description="largest share of rows that may be unusable, 0 to 1")
    personal: Literal["report", "mask", "drop"] = Field("report", description="what is done about personal data")
    max_chars: int = Field(100_000, ge=1, description="longest question or answer, characters")
    skip: list[Literal[SKIPPABLE]] = Field(default_factory=list, description="steps to leave out")  # type: ignore[valid-type]
    engine: Literal["local", "ray"] = Field("local", description="ray: spread over a Ray cluster (optional extra)")
    workers: int = Field(0, ge=0, description="processes; 0: as many as there are cores")

    @field_validator("path", "eval_path")
    @classmethod
    def files_and_folders(cls, value: Any, info: Any) -> Any:
        """Refuse what is neither a path nor a list of paths."""
        listed = value if isinstance(value, list) else [value]
        named = listed and all(isinstance(path, str) and path for path in listed)
        if not named and not (value is None and info.field_name == "eval_path"):
            raise ValueError("must be a file or folder, or a list of them")
        return value


class Merge(Section):
    """How the adapter is folded into the base model."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: the base model's")
    shard_gb: float = Field(5.0, gt=0, le=50, description="largest weight file, GB (10^9 bytes)")
    chat_template: Literal["auto", "base", "trained"] = Field(
        "auto",
        description="base: the base model's own; trained: written from LLaMA Factory's; auto: as the model file says",
    )


class Serve(Section):
    """The HTTP endpoint."""

    engine: Literal["local", "tgi", "vllm"] = Field(
        "local", description="local: the CPU server of this repository; tgi and vllm: pinned images, for a GPU"
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=1, le=65535)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: as the merged weights")
    max_input_tokens: int = Field(1023, ge=1, description="longest prompt, tokens")
    max_total_tokens: int = Field(1024, ge=2, description="prompt and answer together, tokens")
    max_concurrent_requests: int = Field(128, ge=1)
    api_key_file: str | None = Field(None, description="file with the key clients must send; none: no key")
    memory_fraction: float = Field(0.9, gt=0, le=1, description="share of a GPU's memory that tgi and vllm may take")
    tensor_parallel: Any = Field(
        "auto", description="GPUs that share the model: a number, or auto: as many as divide it"
    )
    quantize: str | None = Field(
        None, description="how the server shrinks the weights when it loads them; local: q8_0; none: not"
    )
    batch_variant: bool = Field(
        False, description="local: faster with several users; an answer's last bits then depend on what else runs"
    )
    base_port: int | None = Field(
        None, ge=1, le=65535, description="local: also serve the base model, on this port, to compare at /ui"
    )

    @field_validator("tensor_parallel")
    @classmethod
    def auto_or_a_number(cls, value: Any) -> Any:
        """Refuse what is no number of GPUs."""
        if value != "auto" and not (type(value) is int and value > 0):
            raise ValueError("must be auto or a number of GPUs")
        return value

    @field_validator("max_total_tokens")
    @classmethod
    def room_for_an_answer(cls, value: int, info: Any) -> int:
        """Refuse a total that leaves no token for the answer."""
        limit = info.data.get("max_input_tokens")
        if limit is not None and value <= limit:
            raise ValueError(f"must be more than serve.max_input_tokens ({limit})")
        return value


class Ask(Section):
    """What a client sends with a question when nothing else is said."""

    temperature: float = Field(0.0, ge=0, le=2, description="0: greedy")
    max_new_tokens: int = Field(128, ge=1, description="longest answer, tokens")
    show: list[str] = Field(default_factory=list, description="questions that quickstart asks")


class Eval(Section):
    """How the tuned model is compared with its base model, and what decides that it is better."""

    checks: str | None = Field(None, description="the scenario's own check set: JSON lines with its rows' columns")
    retention: str | None = Field(
        "data/retention/rows.jsonl", description="what must not be forgotten: JSON lines; none: not asked"
    )
    max_rows: int | None = Field(None, ge=1, description="rows of each set that are asked, evenly spaced; none: all")
    max_new_tokens: int | None = Field(None, ge=1, description="longest answer, tokens; none: ask.max_new_tokens")
    concurrency: int = Field(8, ge=1, description="questions under way at once")
    judge_url: str | None = Field(
        None, description="an OpenAI-compatible server whose model also compares the answers; none: no judge"
    )
    judge_model: str = Field("tgi", description="the judge's name on that server")
    judge_key_file: str | None = Field(None, description="file with the key that the judge's server wants")
    min_gain: float = Field(
        0.0,
        ge=-1,
        le=1,
        description="what the gain of right answers must be above, at the lower end of its 95 % interval",
    )
    max_retention_loss: float = Field(
        0.1, ge=0, le=1, description="most that the share of right answers to the retention set may fall"
    )


class Report(Section):
    """The page about a model."""

    language: Literal["en", "zh"] = Field("en", description="en or zh; LANG_DOC= sets it")


class Scenario(Section):
    """One fine-tuned model: what it is made from and how it is served."""

    description: str = ""
    model: str = Field(description="a name from configs/models")
    determinism: Literal["machine", "portable"] = Field(
        "machine", description="equal bytes on one machine, or on other types of CPU too, which is slower"
    )
    data: Data
    train: dict[str, Any] = Field(default_factory=dict, description="LLaMA Factory's own arguments")
    merge: Merge = Field(default_factory=Merge)
    serve: Serve = Field(default_factory=Serve)
    ask: Ask = Field(default_factory=Ask)
    eval: Eval = Field(default_factory=Eval)
    report: Report = Field(default_factory=Report)


class Profile(Section):
    """How big: an overlay on a scenario for one kind of machine."""

    description: str = ""
    gpu: bool = Field(False, description="whether a CUDA GPU is needed")
    gpu_memory_gb: float | None = Field(None, description="GPU memory the settings are made for, GB")
    model: str | None = None
    determinism: Literal["machine", "portable"] | None = None
    data: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    merge: dict[str, Any] = Field(default_factory=dict)
    serve: dict[str, Any] = Field(default_factory=dict)
    ask: dict[str, Any] = Field(default_factory=dict)
    eval: dict[str, Any] = Field(default_factory=dict)
    report: dict[str, Any] = Field(default_factory=dict)
    scenarios: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="further settings for one scenario on this kind of machine"
    )
