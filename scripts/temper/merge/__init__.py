"""The merge stage: base weights and an adapter become one folder that every library and server reads the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def make(
    base: Path,
    adapter: Path,
    out: Path,
    *,
    template: str = "",
    dtype: str = "auto",
    max_shard_bytes: int = 5 * 10**9,
    end_token: str | None = None,
    chat_template: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Fill `out` with merged weights, configuration and tokenizer.

    Plain LoRA is streamed; anything else goes through `llamafactory-cli export`, which needs `template`, and takes
    further `arguments` (resize_vocab and the like). `end_token` is the one that ends the template's turns;
    `chat_template` replaces the base's. Returns stream.merge's figures, with "how" ("stream" or "export") and "why".
    Raises ModelError; see stream.merge, export.export and normalise.normalise.
    """
    from temper.merge import export, normalise, stream

    why = stream.covers(adapter, base)
    with export.scratch(out) as work:
        if why:
            result = export.export(base, adapter, out, work, template, dtype, max_shard_bytes, arguments or {})
        else:
            result = stream.merge(base, adapter, out, dtype, max_shard_bytes, progress)
        source = work if result.pop("new_vocabulary", False) else base
        normalise.normalise(source, out, end_token, chat_template)
    return {**result, "how": "export" if why else "stream", "why": why}
