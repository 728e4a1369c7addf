"""Download a model's files from Hugging Face or ModelScope; what is there already is kept, what was cut off resumed."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from temper.errors import DiskError, ModelError
from temper.models import folder
from temper.models.spec import Source

MIRRORS = (
    "run it again, what has arrived is kept; if it stays so, check network and proxy, set HF_ENDPOINT or "
    "MODELSCOPE_ENDPOINT to a mirror, give a modelscope source, or give a folder with the files as path"
)


class Unreachable(ModelError):
    """A place that does not answer: another one that holds the same files may."""


def download(source: Source, into: Path, trust_remote_code: bool) -> None:
    """Fetch the files worth taking into the folder `into`.

    Configuration comes first, so that a model which is refused is refused before gigabytes are fetched.
    Raises Unreachable when the place does not answer, ModelError when it has no such model or the model is refused.
    """
    get = _huggingface if source.place == "huggingface" else _modelscope
    _ask(get, source, into, ["config.json", "tokenizer_config.json"])
    if not trust_remote_code:
        folder.refuse_remote_code(into, str(source))
    _ask(get, source, into, folder.patterns(trust_remote_code))


def _huggingface(source: Source, into: Path, wanted: list[str]) -> None:
    """Fetch what the repository lists; HF_ENDPOINT, HF_TOKEN and the proxy variables are the library's own.

    The list is asked for separately: snapshot_download alone takes an incomplete folder for the model when it cannot
    reach the hub (huggingface_hub 0.36, "Returning existing local_dir").
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    repository = str(source.huggingface)
    info = HfApi().model_info(repository, revision=source.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    there = [file.rfilename for file in info.siblings or []]
    folder.refuse_weights(there, str(source))
    names = [name for name in there if _any(name, wanted) and not _any(name, folder.DROP)]
    snapshot_download(repository, revision=info.sha, local_dir=into, allow_patterns=names)
    if missing := [name for name in names if not (into / name).is_file()]:
        raise ConnectionError(f"{missing[0]} did not arrive")


def _modelscope(source: Source, into: Path, wanted: list[str]) -> None:
    """Fetch what the repository lists; MODELSCOPE_ENDPOINT and MODELSCOPE_API_TOKEN are the library's own."""
    from modelscope_hub import HubApi
    from modelscope_hub.errors import HubError

    try:
        HubApi().download_repo(
            str(source.modelscope),
            "model",
            revision=source.revision,
            local_dir=str(into),
            allow_patterns=wanted,
            ignore_patterns=list(folder.DROP),
        )
    except HubError as error:  # no OSError, and a failed file's own reason is one level down
        reason = next(iter(getattr(error, "failed_files", {}).values()), error)
        raise _Refused(str(reason), getattr(reason, "status_code", None)) from error


class _Refused(OSError):
    def __init__(self, text: str, status: int | None) -> None:
        super().__init__(text)
        self.status = status


def _any(name: str, globs: list[str] | tuple[str, ...]) -> bool:
    return any(fnmatch(name, glob) for glob in globs)


def _ask(get: Callable[[Source, Path, list[str]], None], source: Source, into: Path, wanted: list[str]) -> None:
    """Call `get`; what a hub's library raises becomes one line with a remedy."""
    try:
        get(source, into, wanted)
    except OSError as error:  # the libraries' network errors are OSErrors too
        text = " ".join(str(error).replace("\\'", "'").split())
        status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text:
            raise DiskError(f"no space left for {source} in {into}", "free some, then run it again") from None
        if status in (401, 403, 404):
            raise ModelError(
                f"{source}: the hub has no such repository or revision, or not for you ({status})",
                "correct the model file; if it is gated, accept its terms and set HF_TOKEN",
            ) from None
        host = re.search(r"host='([^']+)', port=(\d+)\): Max retries", text)
        why = f"{host[1]}:{host[2]} does not answer" if host else text[:160].rstrip(".")
        raise Unreachable(f"{source} cannot be fetched: {why}", MIRRORS) from None
