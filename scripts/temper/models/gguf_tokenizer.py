"""Turn the tokenizer inside a GGUF file into tokenizer.json and tokenizer_config.json.

Written out here rather than read through transformers, whose reader (4.57.6) puts <|im_start|> in front of every
text, makes it the end token, and does not split digits; the ids would be others than those the model was trained on.
Not covered: sentencepiece vocabularies, and pre-tokenizers other than those in DIGITS_APART.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from temper.errors import ModelError

CONTROL, USER_DEFINED = 3, 4  # token types of the GGUF specification
DIGITS_APART = {"smollm": True}  # pre-tokenizer name to whether every digit is a word of its own


def write(fields: dict[str, Any], end_token: str, work: Path) -> dict[str, int]:
    """Write both files into `work`; return {"bos", "eos", "pad"} ids, with `end_token` as eos and pad.

    `fields` are the GGUF file's keys and values. Raises ModelError when the tokenizer is of a kind not covered.
    """
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    kind, split = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre")
    if kind != "gpt2" or split not in DIGITS_APART:
        raise ModelError(
            f"the GGUF file's tokenizer is {kind}/{split}, and only gpt2/smollm is read",
            "take the model from huggingface, modelscope or path instead",
        )
    if end_token not in tokens:
        raise ModelError(f"the GGUF file has no token {end_token}", "correct end_token in the model file")
    _build(fields, DIGITS_APART[split]).save(str(work / "tokenizer.json"))
    ids = {"bos": fields["tokenizer.ggml.bos_token_id"], "eos": tokens.index(end_token)}
    ids["pad"] = fields.get("tokenizer.ggml.padding_token_id", ids["eos"])
    text = json.dumps(_settings(fields, ids), indent=2, ensure_ascii=False)
    (work / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    return ids


def _build(fields: dict[str, Any], digits_apart: bool) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    # No unknown token: the few bytes that SmolLM2 lacks (control characters, unassigned planes) are left out of the
    # ids, as its authors' own file does (github.com/huggingface/smollm, issue 81).
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    apart = [pre_tokenizers.Digits(individual_digits=True)] if digits_apart else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*apart, words])
    tokenizer.decoder = decoders.ByteLevel()
    for number, kind in enumerate(fields["tokenizer.ggml.token_type"]):
        if kind in (CONTROL, USER_DEFINED):
            tokenizer.add_tokens([AddedToken(tokens[number], normalized=False, special=kind == CONTROL)])
    return tokenizer


def _settings(fields: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    """Return tokenizer_config.json: the class is the one that reads tokenizer.json as it stands in every version."""
    tokens = fields["tokenizer.ggml.tokens"]
    added = {
        str(number): {
            "content": tokens[number],
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": kind == CONTROL,
        }
        for number, kind in enumerate(fields["tokenizer.ggml.token_type"])
        if kind in (CONTROL, USER_DEFINED)
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": fields["llama.context_length"],
        "bos_token": tokens[ids["bos"]],
        "eos_token": tokens[ids["eos"]],
        "pad_token": tokens[ids["pad"]],
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],  # without it, token_type_ids too, which generate refuses
        "chat_template": fields["tokenizer.chat_template"],
        "added_tokens_decoder": added,
    }
