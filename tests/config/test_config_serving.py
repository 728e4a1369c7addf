"""What an engine is known not to do is refused with the rest of the scenario's problems, each with its remedy."""

from __future__ import annotations

import pytest
from config_site import Site

from temper.config import resolve, serving
from temper.config.schema import Serve

TGI, VLLM = "serve.engine=tgi", "serve.engine=vllm"


def test_gpu_profiles_are_served_by_tgi_and_the_cpu_profile_here(site: Site) -> None:
    """The profile chooses the engine, and SET another."""
    for profile, engine in {"cpu": "local", "gpu-24g": "tgi", "gpu-80g": "tgi", "multi-node": "tgi"}.items():
        assert site.mine(profile=profile)["serve"]["engine"] == engine
    assert site.mine(profile="gpu-24g", overrides=VLLM)["serve"]["engine"] == "vllm"
    serve = site.mine()["serve"]
    assert (serve["memory_fraction"], serve["tensor_parallel"], serve["quantize"]) == (0.9, "auto", None)


@pytest.mark.parametrize(
    ("profile", "model", "overrides", "key", "said"),
    [
        ("cpu", "", TGI, "serve.engine", "needs an NVIDIA GPU, and this profile has none; ENGINE=local, or PROFILE="),
        ("cpu", "", VLLM, "serve.engine", "vllm needs an NVIDIA GPU"),
        ("gpu-24g", "glm-4-9b-0414", "", "serve.engine", "TGI 3.3.7 does not serve glm4 models; ENGINE=vllm"),
        ("gpu-24g", "qwen3-4b-instruct", "serve.quantize=bitsandbytes-nf4", "serve.quantize", "transformers backend"),
        ("gpu-24g", "", "serve.quantize=awq", "serve.quantize", "awq: tgi cannot make that of a merged model; null"),
        ("gpu-24g", "", f"{VLLM} serve.quantize=eetq", "serve.quantize", "or one of bitsandbytes, fp8"),
        ("gpu-24g", "", "serve.quantize=fp8", "serve.quantize", "computes in float16; say so with serve.dtype: "),
        ("cpu", "", "serve.quantize=fp8", "serve.quantize", "local cannot make that of a merged model; null, or "),
        ("cpu", "", "serve.quantize=q8_0 serve.batch_variant=true", "serve.batch_variant", "with q8_0 answers depend"),
        ("gpu-24g", "", "serve.batch_variant=true", "serve.batch_variant", "with tgi answers depend on what else"),
        ("cpu", "", "serve.dtype=float16", "serve.dtype", "bfloat16, float32 or auto"),
        ("gpu-24g", "", "serve.dtype=float32", "serve.dtype", "float32: TGI serves bfloat16 and float16 only; "),
        ("gpu-24g", "", "merge.dtype=float32", "serve.dtype", "auto is float32 here (merge.dtype): TGI serves"),
        ("cpu", "", "serve.max_total_tokens=8193", "serve.max_total_tokens", "8193 is more than the model's 8192"),
        ("gpu-24g", "", "serve.api_key_file=key", "serve.api_key_file", "TGI prints its key when it starts"),
        ("gpu-24g", "", "serve.tensor_parallel=2", "serve.tensor_parallel", "9 heads, 3 of them for keys; auto, or"),
        ("cpu", "", "serve.tensor_parallel=3", "serve.tensor_parallel", "3 GPUs cannot share"),
        ("cpu", "", "serve.tensor_parallel=0", "serve.tensor_parallel", "must be auto or a number of GPUs"),
        ("cpu", "", "serve.tensor_parallel=true", "serve.tensor_parallel", "must be auto or a number of GPUs"),
        ("cpu", "", "serve.memory_fraction=1.5", "serve.memory_fraction", "less than or equal to 1"),
        ("cpu", "", "serve.engine=sglang", "serve.engine", "should be 'local', 'tgi' or 'vllm'"),
    ],
)  # fmt: skip
def test_what_an_engine_cannot_do_is_refused(
    site: Site, profile: str, model: str, overrides: str, key: str, said: str
) -> None:
    """The one problem names its key and what to do instead."""
    report = site.refusal(profile=profile, model=model, overrides=overrides).splitlines()
    assert len(report) == 2 and report[1].startswith(f"  {key}: ") and said in report[1]


def test_a_template_that_thinks_is_refused_with_tgi_when_the_adapter_was_trained_without(site: Site) -> None:
    """TGI passes no enable_thinking; a template written from the trained one, or vLLM, is the way out."""
    spec = (site.root / "configs/models/qwen3-4b-instruct.yaml").read_text(encoding="utf-8")
    site.write("models", "hybrid", spec.replace("template: qwen3_nothink", "template: qwen3"))
    given = {"profile": "gpu-24g", "model": "hybrid"}
    report = site.refusal("train: {enable_thinking: false}\n", **given)
    assert "serve.engine: the adapter is trained without thinking" in report
    assert "merge.chat_template: trained" in report and "ENGINE=vllm" in report
    for more in (
        "train: {enable_thinking: true}\n",
        "train: {enable_thinking: false}\nmerge: {chat_template: trained}\n",
    ):
        assert site.mine(more, **given)["serve"]["engine"] == "tgi"
    assert site.mine("train: {enable_thinking: false}\n", **given, overrides=VLLM)["serve"]["engine"] == "vllm"


def test_every_quantisation_that_an_engine_has_is_accepted(site: Site) -> None:
    """Each value of the table passes on a model that the engine runs itself."""
    for engine, values in serving.QUANTIZE.items():
        for value in values:
            dtype = "float16" if value in serving.WITHOUT_DTYPE else "auto" if engine == "local" else "bfloat16"
            overrides = f"serve.engine={engine} serve.quantize={value} serve.dtype={dtype}"
            assert site.mine(profile="gpu-24g", overrides=overrides)["serve"]["quantize"] == value


def test_an_engines_problems_come_with_the_others(site: Site) -> None:
    """A typo, a wrong type and what TGI cannot do are told in one report."""
    report = site.refusal(
        "train: {lrate: 1}\nserve: {port: http, quantize: awq, max_total_tokens: 9000}\n",
        profile="gpu-24g",
        model="glm-4-9b-0414",
    )
    for key in ("train.lrate", "serve.port", "serve.quantize", "serve.engine"):
        assert f"  {key}: " in report
    assert "serve: 8000 should be a valid dictionary" in site.refusal("serve: 8000\n", profile="gpu-24g")


def test_sharing_a_model_among_gpus() -> None:
    """TGI wants both kinds of heads divided; vLLM may give several GPUs the same key heads."""
    cases = {("tgi", 4, 28, 4): True, ("tgi", 8, 32, 4): False, ("vllm", 8, 32, 4): True, ("vllm", 3, 32, 4): False,
             ("tgi", 1, 9, 3): True, ("local", 1, 9, 3): True, ("local", 3, 9, 3): False}  # fmt: skip
    assert {case: serving.divides(*case) for case in cases} == cases


def test_every_new_key_is_described() -> None:
    """Whoever reads the schema learns what a key is for."""
    for key in ("engine", "memory_fraction", "tensor_parallel", "quantize"):
        assert Serve.model_fields[key].description
    assert resolve.SECTIONS.index("serve")
