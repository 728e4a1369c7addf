"""Turn a grammar of a request into masks over the tokens, by llguidance.

Differs from TGI 3.3.7, which turns a JSON schema into a regular expression, in nothing a schema's author would miss:
an object has its listed properties only, in their order, with one blank at most between signs, and keywords that are
not understood are passed over. `oneOf` means `anyOf`.
"""

from __future__ import annotations

import functools
import json
import re
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from temper.serve import faults
from temper.serve.bodies import GrammarType

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from temper.serve.load import Loaded

KEPT = 32  # compiled grammars kept for further requests, as many as in TGI
# \d and the like mean ASCII, as in TGI; sets may stand in sets.
SETS = {"d": "0-9", "w": "0-9A-Za-z_", "s": r" \t\r\n\f\v"}
MAPS, LISTS, SINGLE = ("properties", "$defs", "definitions"), ("anyOf", "oneOf", "prefixItems"), ("items",)


class Grammars:
    """Compiles grammars for one model; the first takes half a second more, as the vocabulary is read then."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self._matcher = functools.lru_cache(KEPT)(self._compile)

    def __call__(self, given: GrammarType) -> LLMatcher:
        """Return a matcher at the start of its grammar, to be copied, not used; Fault (422) for one that cannot be."""
        if given.type == "regex":
            return self._matcher("regex", re.sub(r"\\(.)", _ascii, given.value, flags=re.DOTALL))
        schema = given.value["schema"] if given.type == "json_schema" else _schema(given.value)
        if not isinstance(schema, dict) or "properties" not in schema:
            raise faults.invalid("grammar is not valid: Grammar must have a 'properties' field")
        return self._matcher("json", json.dumps(_closed(schema)))

    @functools.cached_property
    def _tokenizer(self) -> Any:
        import llguidance.hf

        return llguidance.hf.from_tokenizer(self.loaded.tokenizer, eos_token=sorted(self.loaded.eos) or None)

    def _compile(self, kind: str, text: str) -> LLMatcher:
        from llguidance import LLMatcher

        made = (
            LLMatcher.grammar_from_regex(text)
            if kind == "regex"
            else LLMatcher.grammar_from_json_schema(
                text, overrides={"whitespace_pattern": "[ ]?", "coerce_one_of": True, "lenient": True}
            )
        )
        matcher = LLMatcher(self._tokenizer, made, log_level=0)
        matcher.compute_bitmask()  # some faults show only when the first token is asked for
        if problem := matcher.get_error():
            raise faults.invalid(f"grammar is not valid: {_line(problem)}")
        return matcher


def _ascii(escape: re.Match[str]) -> str:
    name = escape[1]
    negated = "^" if name.isupper() else ""
    return f"[{negated}{SETS[name.lower()]}]" if name.lower() in SETS else escape[0]


def _schema(value: Any) -> Any:
    """Return the schema of a "json" grammar, which may also be its text."""
    if isinstance(value, str):
        try:
            return from_json(value)
        except ValueError as error:
            raise faults.invalid(f"grammar is not valid: {error}") from None
    if not isinstance(value, dict):
        raise faults.invalid("grammar is not supported")
    return value


def _closed(schema: Any) -> Any:
    """Return a schema whose objects say that they are objects, and neither have nor require further properties."""
    if not isinstance(schema, dict):
        return schema
    parts = {key: _closed(schema[key]) for key in SINGLE if key in schema}
    parts |= {key: list(map(_closed, schema[key])) for key in LISTS if isinstance(schema.get(key), list)}
    maps = {key: schema[key] for key in MAPS if isinstance(schema.get(key), dict)}
    parts |= {key: {name: _closed(part) for name, part in value.items()} for key, value in maps.items()}
    if "properties" not in maps:
        return schema | parts
    required = schema.get("required")
    known = [name for name in required if name in maps["properties"]] if isinstance(required, list) else []
    return {"type": "object", "additionalProperties": False, **schema, **parts, "required": known}


def _line(problem: str) -> str:
    """Return what matters of an error over several lines."""
    errors = [line for line in problem.splitlines() if line.startswith("error: ")]
    return " ".join((errors[0].removeprefix("error: ") if errors else problem).split())[:300]
