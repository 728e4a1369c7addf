"""Checkpoint parity: the oldest library that will serve a merged folder reads in it what the one that trained it had.

The oldest is transformers 4.51.0, inside TGI 3.3.7. It knows nothing of `rope_parameters` and `dtype` (transformers 5
and 4.56), takes its own default where it misses a key, and says nothing. Only files are read here; the proof by loading
a folder in a real transformers 4.51 is in tests/merge.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from temper.merge import served, weight_files
from temper.merge.outcome import Outcome, attempt, judged

KNOWN = Path(__file__).with_name("transformers-4.51.json")
AGAIN = "delete the merged folder and merge again"
# Differ by right between a base model and its merged folder, or have a check of their own.
APART = {
    "dtype",
    "torch_dtype",
    "transformers_version",
    "_name_or_path",
    "vocab_size",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "eos_token_id",
    "bos_token_id",
    "pad_token_id",
    "tokenizer_class",
    "auto_map",
}
NAMES = {"theta": "rope_theta", "partial": "partial_rotary_factor", "scaling": "rope_scaling"}


@dataclass(frozen=True)
class Folders:
    """A base model's folder and the merged one, with what the checks read in them."""

    base: Path
    merged: Path
    end_token: str | None
    tgi: bool

    @cached_property
    def config(self) -> dict[str, Any]:
        """Return the merged config.json as written."""
        return served.read(self.merged, "config.json")

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        """Return the merged tokenizer_config.json as written."""
        return served.read(self.merged, "tokenizer_config.json")

    @cached_property
    def token_ids(self) -> dict[str, int]:
        """Return the merged tokenizer's tokens with their ids."""
        return served.token_ids(self.merged)

    @cached_property
    def resolved(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return both configs as the installed transformers reads them, defaults included."""
        from transformers import AutoConfig

        base, merged = (AutoConfig.from_pretrained(str(path)).to_dict() for path in (self.base, self.merged))
        return base, merged


def rope(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config's rotary base and scaling in one form, whichever transformers wrote it.

    {"theta": float | None, "partial": float | None, "scaling": dict | None}; a scaling of the default kind is None.
    """
    params = config.get("rope_parameters") or {}
    if any(isinstance(value, dict) for value in params.values()):  # one set per kind of layer
        params = params.get("full_attention") or {}
    own = {key: value for key, value in params.items() if key not in ("rope_theta", "partial_rotary_factor")}
    scaling = dict(config.get("rope_scaling") or own)
    kind = scaling.pop("rope_type", None) or scaling.get("type", "default")
    scaling.pop("type", None)
    return {
        **{
            key: params.get(name) if config.get(name) is None else config[name]
            for key, name in (("theta", "rope_theta"), ("partial", "partial_rotary_factor"))
        },
        "scaling": None if kind == "default" else {**scaling, "rope_type": kind},
    }


def _rope(folders: Folders) -> Outcome:
    """Compare the base model's rotary settings with what transformers 4.51 reads: the keys of version 4 alone.

    rope_theta must be written out even where the base model leaves it to its class: other versions may differ in that.
    """
    true, resolved = rope(served.read(folders.base, "config.json")), rope(folders.resolved[0])
    problems = [
        f"training read {NAMES[key]} {resolved[key]} where the base model has {true[key]}"
        for key in NAMES
        if true[key] is not None and resolved[key] != true[key]
    ]
    true["theta"] = resolved["theta"] if true["theta"] is None else true["theta"]
    read = rope({key: value for key, value in folders.config.items() if key != "rope_parameters"})
    for key, name in NAMES.items():
        where = "transformers 4.51 takes its own default" if read[key] is None else f"config.json has {read[key]}"
        if true[key] != read[key]:
            problems.append(f"{name} is {true[key]} in the base model, but {where}")
        elif "rope_parameters" in folders.config:  # which transformers 5 takes first
            newer = rope({**folders.config, name: None})[key]
            if newer != true[key] and (newer is not None or key == "scaling"):
                problems.append(f"rope_parameters has {newer} where {name} is {true[key]}")
    return judged(
        "rope",
        problems,
        AGAIN,
        f"rope_theta {true['theta']}, scaling {true['scaling']}, in the form of transformers 4.x",
        rope_theta=true["theta"],
    )


def _config(folders: Folders) -> Outcome:
    """Compare everything else of the two configs, as the installed transformers resolves them."""
    base, merged = folders.resolved
    differ = sorted(key for key in base.keys() | merged.keys() if key not in APART and base.get(key) != merged.get(key))
    problems = [f"{key} is {base.get(key)} in the base model and {merged.get(key)} in the merged" for key in differ]
    return judged("config", problems, AGAIN, f"{len(base.keys() - APART)} settings equal the base model's")


def _dtype(folders: Folders) -> Outcome:
    written = weight_files.main_dtype(weight_files.tensors(folders.merged))
    stated, newer = folders.config.get("torch_dtype"), folders.config.get("dtype")
    problems = []
    if stated != written:
        problems.append(
            f"config.json has torch_dtype {stated}, the weights are {written}"
            + ("" if stated else " (transformers 4.51 does not read the key dtype)")
        )
    if newer not in (None, written):
        problems.append(f"config.json has dtype {newer}, the weights are {written}")
    return judged("dtype", problems, AGAIN, f"torch_dtype {stated}, as the weights", dtype=written)


def _vocabulary(folders: Folders) -> Outcome:
    found, size = weight_files.tensors(folders.merged), folders.config.get("vocab_size")
    embedding = weight_files.rows(found, weight_files.EMBEDDINGS)
    problems = [] if embedding else ["no embedding was found"]
    tables = {**embedding, **weight_files.rows(found, weight_files.HEADS)}
    problems += [f"vocab_size is {size}, {name} has {rows} rows" for name, rows in tables.items() if rows != size]
    highest = max(folders.token_ids.values(), default=-1)
    if highest < 0:
        problems.append("tokenizer.json is missing or has no tokens")
    elif size is not None and highest >= size:
        problems.append(f"the tokenizer's highest id is {highest}, vocab_size is {size}")
    return judged(
        "vocabulary",
        problems,
        AGAIN,
        f"{size} embedding rows, highest token id {highest}",
        vocab_size=size,
        highest_id=highest,
    )


def _eos(folders: Folders) -> Outcome:
    """Check that every server ends an answer at the same, real token: the model's end token if one is given."""
    known, size = folders.token_ids, folders.config.get("vocab_size") or 0
    name = served.token_text(folders.tokenizer_config.get("eos_token"))
    generation = served.eos_ids(folders.merged, tgi=False)
    ids = served.eos_ids(folders.merged, folders.tgi, known)
    problems = []
    if name not in known:
        problems.append(f"the tokenizer's eos_token {name} is no token of it")
    elif known[name] not in generation:
        problems.append(f"eos_token {name} is id {known[name]}, generation_config.json ends at {sorted(generation)}")
    if folders.end_token and known.get(folders.end_token) not in ids:
        problems.append(
            f"answers end with {folders.end_token} (id {known.get(folders.end_token)}), the served eos ids "
            f"are {sorted(ids)}"
        )
    problems += [f"eos id {token} is outside the vocabulary" for token in sorted(generation) if token >= size]
    return judged(
        "eos",
        problems,
        f"set end_token: in the model file, then {AGAIN}",
        f"answers end at ids {sorted(ids)}, eos_token {name}",
        eos=sorted(ids),
    )


def _exists(name: str, known: list[str]) -> bool:
    import transformers

    choices = [name] if name.endswith("Fast") else [f"{name}Fast", name]  # as AutoTokenizer looks for it
    return any(choice in known for choice in choices) and any(hasattr(transformers, choice) for choice in choices)


def _tokenizer_class(folders: Folders) -> Outcome:
    name = folders.tokenizer_config.get("tokenizer_class")
    problems = []
    if not name:
        problems.append("tokenizer_config.json has no tokenizer_class")
    elif not _exists(name, json.loads(KNOWN.read_text(encoding="utf-8"))["tokenizer_classes"]):
        problems.append(f"tokenizer class {name} is not known to both transformers 4.51 and the installed one")
    if not isinstance(folders.tokenizer_config.get("extra_special_tokens", {}), dict):
        problems.append("extra_special_tokens is a list, which transformers 4.51 cannot read")
    return judged("tokenizer class", problems, AGAIN, f"{name}, known to transformers 4.51 and the installed one")


def _chat_template(folders: Folders) -> Outcome:
    """Check that TGI finds a template, and that transformers, which looks elsewhere first, finds the same."""
    template, jinja = served.chat_template(folders.merged), folders.merged / "chat_template.jinja"
    problems = []
    if template is None:
        where = "only in chat_template.jinja, which TGI does not read" if jinja.exists() else "nowhere TGI looks"
        problems.append(f"the chat template is {where}")
    elif jinja.exists() and jinja.read_text(encoding="utf-8") != template:
        problems.append("chat_template.jinja differs from the template TGI reads")
    elif folders.tokenizer_config.get("chat_template") not in (None, template) and not isinstance(
        folders.tokenizer_config["chat_template"], list
    ):
        problems.append("chat_template.json differs from the template in tokenizer_config.json")
    return judged(
        "chat template",
        problems,
        "set merge.chat_template: trained, then merge again",
        f"{len(template or '')} characters, where TGI and transformers look",
    )


def _weight_files(folders: Folders) -> Outcome:
    tied = bool(folders.config.get("tie_word_embeddings", folders.resolved[1].get("tie_word_embeddings")))
    return weight_files.check(folders.base, folders.merged, tied)


def _code(folders: Folders) -> Outcome:
    """Refuse remote code, and a model type the server cannot load."""
    problems = [
        f"{name} has auto_map, which runs code from the folder"
        for name, found in (("config.json", folders.config), ("tokenizer_config.json", folders.tokenizer_config))
        if "auto_map" in found
    ]
    kind = folders.config.get("model_type")
    if folders.tgi and kind not in json.loads(KNOWN.read_text(encoding="utf-8"))["model_types"]:
        problems.append(f"TGI's transformers 4.51 does not know model type {kind}")
    remedy = "use another base model, or tgi: false in the model file to serve it elsewhere"
    return judged("model type", problems, remedy, f"{kind}, no remote code")


def check(base: Path, merged: Path, end_token: str | None = None, tgi: bool = True) -> list[Outcome]:
    """Compare a merged folder with its base model; one outcome per property. Reads no tensor."""
    folders = Folders(base, merged, end_token, tgi)
    files = attempt("weight files", lambda: _weight_files(folders), AGAIN)
    checks: dict[str, Callable[[Folders], Outcome]] = {
        "rope": _rope,
        "config": _config,
        "eos": _eos,
        "tokenizer class": _tokenizer_class,
        "chat template": _chat_template,
        "model type": _code,
    }
    if files["ok"]:
        checks |= {"dtype": _dtype, "vocabulary": _vocabulary}
    return [files, *(attempt(name, partial(found, folders), AGAIN) for name, found in checks.items())]
