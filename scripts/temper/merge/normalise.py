"""Write configuration and tokenizer so that transformers 4.51 (inside TGI 3.3.7) and 5 read the same model.

Both start from the base's own files: a save_pretrained of either library loses what the other needs.
transformers 5 moves rope_theta and rope_scaling into rope_parameters, where 4 does not look and takes 10000 without a
word; it names tokenizer classes that 4 does not have; both of late keep the chat template in a file TGI never reads.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from temper.errors import ModelError
from temper.merge import shards

# Copied as they are; nothing else of the base is (no adapters, pickles, code, or files named for training).
VOCABULARY = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "added_tokens.json",
    "spiece.model",
    "sentencepiece.bpe.model",
)
# About the machine and session a file was written in, or about code and weights that are not in this folder.
LEFT_OUT = {
    "_name_or_path",
    "name_or_path",
    "_commit_hash",
    "auto_map",
    "quantization_config",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "tokenizer_file",
    "vocab_file",
    "merges_file",
    "special_tokens_map_file",
    "added_tokens_file",
    "cache_dir",
    "is_local",
    "local_files_only",
    "backend",
}
# Names that transformers 5 gives to tokenizers defined by tokenizer.json alone, and a class that it builds from code,
# with other leading spaces than tokenizer.json says and 4 makes.
BY_FILE = {"TokenizersBackend", "PythonBackend", "SentencePieceBackend", "CodeLlamaTokenizer", "CodeLlamaTokenizerFast"}
LLAMA = {"LlamaTokenizer", "LlamaTokenizerFast"}
IN_ROPE_ONLY_IN_5 = ("rope_theta", "partial_rotary_factor")


def normalise(base: Path, out: Path, end_token: str | None = None, chat_template: str | None = None) -> None:
    """Write config.json, generation_config.json and the tokenizer's files into `out`, which holds the merged weights.

    `end_token` is the token that ends a turn of the chat template: its id is put among eos_token_id's, first.
    `chat_template` replaces the base's own, which else goes to tokenizer_config.json and chat_template.jinja both.
    Raises ModelError for a base without config.json or a tokenizer, an unknown `end_token`, or one kind of rotary
    embedding per layer that transformers 4 has no words for.
    """
    _vocabulary(base, out)
    end = _token_id(out, end_token) if end_token else None
    config = _config(base, out)
    generation = _read(base / "generation_config.json") or _generation(config)
    for part in (config, generation):
        if end is not None:
            part["eos_token_id"] = _with(part.get("eos_token_id"), end)
    _write(out / "config.json", config)
    _write(out / "generation_config.json", generation)
    _tokenizer_config(base, out, chat_template)


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(_scrubbed(json.loads(file.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise ModelError(f"{file} is not JSON", "fetch the base model again") from None


def _scrubbed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _scrubbed(inner) for key, inner in value.items() if key not in LEFT_OUT}
    return value


def _write(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _vocabulary(base: Path, out: Path) -> None:
    for name in VOCABULARY:
        (out / name).unlink(missing_ok=True)
        if (base / name).is_file():
            shutil.copyfile(base / name, out / name)
    if not (out / "tokenizer.json").is_file():
        _convert(base, out)


def _convert(base: Path, out: Path) -> None:
    """Write tokenizer.json, which TGI's router needs, from the base's older files."""
    from transformers import AutoTokenizer

    try:
        fast = AutoTokenizer.from_pretrained(base, use_fast=True).backend_tokenizer
    except Exception as error:  # whatever is missing, transformers raises another type for it
        raise ModelError(
            f"{base} has no tokenizer.json, and none can be made ({str(error).splitlines()[0]})",
            "take a revision of the model that has tokenizer.json",
        ) from None
    fast.save(str(out / "tokenizer.json"))


def _config(base: Path, out: Path) -> dict[str, Any]:
    config = _read(base / "config.json")
    if not config:
        raise ModelError(f"{base} holds no config.json", "fetch the base model again")
    dtype = shards.TORCH[shards.dtype(shards.model(out))]
    for part in (config, *(config[key] for key in ("text_config",) if isinstance(config.get(key), dict))):
        part["dtype"] = part["torch_dtype"] = dtype
        _rope(part, base)
    if config.get("tokenizer_class") in BY_FILE:
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    return config


def _rope(config: dict[str, Any], base: Path) -> None:
    """Put what rope_parameters says at the top level too, in the words of transformers 4."""
    rope = config.get("rope_parameters")
    if not rope:
        if "rope_theta" not in config:
            _default_rope(config)
        return
    if any(isinstance(value, dict) for value in rope.values()):
        if "rope_theta" not in config:
            raise ModelError(
                f"{base}/config.json has one rotary embedding per kind of layer, in transformers 5's form",
                "take the model's revision for transformers 4",
            )
        return
    for key in IN_ROPE_ONLY_IN_5:
        if key in rope:
            config[key] = rope[key]
    config.pop("rope_scaling", None)
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        config["rope_scaling"] = {key: value for key, value in rope.items() if key not in IN_ROPE_ONLY_IN_5}


def _default_rope(config: dict[str, Any]) -> None:
    """Write out the rotary base that the model's class takes when a config is silent, if it has one."""
    from transformers import AutoConfig

    known = AutoConfig.for_model(config["model_type"])
    theta = getattr(known, "rope_theta", None) or (getattr(known, "rope_parameters", None) or {}).get("rope_theta")
    if theta is not None:
        config["rope_theta"] = theta


def _generation(config: dict[str, Any]) -> dict[str, Any]:
    known = {key: config.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {key: value for key, value in known.items() if value is not None}


def _with(ids: int | list[int] | None, end: int) -> int | list[int]:
    held = ids if isinstance(ids, list) else [ids] if ids is not None else []
    if end in held:
        return ids if ids is not None else end
    return [end, *held] if held else end


def _token_id(out: Path, token: str) -> int:
    """Return the id of a token of tokenizer.json; ModelError when it has none."""
    tokenizer = json.loads((out / "tokenizer.json").read_text(encoding="utf-8"))
    for added in tokenizer.get("added_tokens") or []:
        if added["content"] == token:
            return int(added["id"])
    vocabulary = tokenizer["model"].get("vocab") or {}
    listed = vocabulary if isinstance(vocabulary, dict) else {piece[0]: at for at, piece in enumerate(vocabulary)}
    if token not in listed:
        raise ModelError(
            f"the tokenizer has no token {token}, which should end a turn",
            "set the model's end_token to the one its chat template ends turns with",
        )
    return int(listed[token])


def _tokenizer_config(base: Path, out: Path, chat_template: str | None) -> None:
    config = _read(base / "tokenizer_config.json")
    if config.get("tokenizer_class") in BY_FILE:
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if "legacy" not in config and config.get("tokenizer_class") in LLAMA:
        config.update(_legacy(out))
    extra = config.get("extra_special_tokens")
    if isinstance(extra, list):  # 5's name for it; 4 knows that key only as a mapping
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    elif extra == {}:  # 5 would take it instead of additional_special_tokens
        del config["extra_special_tokens"]
    template = chat_template or _template(base, config)
    jinja = out / "chat_template.jinja"
    jinja.unlink(missing_ok=True)
    if template:
        config["chat_template"] = template
    if isinstance(template, str):  # several templates, by name, stay in the one file that holds a list
        jinja.write_text(template, encoding="utf-8")
    _write(out / "tokenizer_config.json", config)
    if special := _read(base / "special_tokens_map.json"):
        _write(out / "special_tokens_map.json", special)


def _legacy(out: Path) -> dict[str, bool]:
    """Return the key that transformers 5 forgets when it saves a Llama tokenizer, and then reads as False.

    It says whether each piece of text gets a leading space, or only the first; 4 takes that from tokenizer.json.
    """
    splitter = json.loads((out / "tokenizer.json").read_text(encoding="utf-8")).get("pre_tokenizer") or {}
    scheme = splitter.get("prepend_scheme")
    return {"legacy": scheme == "always"} if scheme in ("always", "first") else {}


def _template(base: Path, config: dict[str, Any]) -> str | list[dict[str, str]] | None:
    """Return the base's chat template as transformers finds it: the file first, then tokenizer_config.json."""
    if (base / "chat_template.jinja").is_file():
        return (base / "chat_template.jinja").read_text(encoding="utf-8")
    found = config.get("chat_template") or _read(base / "chat_template.json").get("chat_template")
    return found or None
