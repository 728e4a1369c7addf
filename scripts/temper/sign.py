"""Sign results with an offline key, and check the signatures: DSSE envelopes, and OpenSSF's signature of the model.

An optional extra. The tools of those projects check them too, without a network: `model_signing verify key`, and
securesystemslib or any other reader of DSSE. Keys are P-256 in PEM (openssl ecparam -genkey -name prime256v1).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from temper import pipeline, provenance, stage
from temper.errors import MachineError, ResultError, UsageError

Config = dict[str, Any]
Say = Callable[[str], None]
FOLDER, MODEL = "signed", "merged.sig"
LEFT_OUT = (stage.CARD, "run.json", "run.result.json", provenance.FILE)  # of the merged folder: about the run


def sign(config: Config, key: Path, say: Say) -> None:
    """Sign the statement of each result that is there, and the merged folder; an altered result is refused."""
    from securesystemslib import dsse, signer

    private = signer.CryptoSigner(_key(key, private=True))  # type: ignore[attr-defined]
    folder = pipeline.folder(config) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, result in _made(config):
        stage.refuse_altered(result)
        envelope = dsse.Envelope((result / provenance.FILE).read_bytes(), provenance.MEDIA_TYPE, {})
        envelope.sign(private)
        (folder / f"{name}.intoto.json").write_text(json.dumps(envelope.to_dict()) + "\n", encoding="utf-8")
        say(f"sign    {folder / name}.intoto.json")
    if (merged := pipeline.folder(config) / "merged").is_dir():
        from model_signing import hashing, signing

        left_out = hashing.Config().set_ignored_paths(paths=LEFT_OUT, ignore_git_paths=False)
        signer_of = signing.Config().use_elliptic_key_signer(private_key=key)
        signer_of.set_hashing_config(left_out).sign(merged, folder / MODEL)
        say(f"sign    {folder / MODEL}")


def verify(config: Config, key: Path, say: Say) -> list[str]:
    """Check every signature with the public key; return what is wrong, a line each."""
    from securesystemslib import dsse, exceptions, signer

    public = signer.SSlibKey.from_crypto(_key(key, private=False))  # type: ignore[attr-defined]
    wrong = []
    folder = pipeline.folder(config) / FOLDER
    for name, result in _made(config):
        file = folder / f"{name}.intoto.json"
        if not file.is_file():
            wrong.append(f"{name} is not signed")
            continue
        try:
            envelope = dsse.Envelope.from_dict(json.loads(file.read_text(encoding="utf-8")))
            envelope.verify([public], 1)
            said = {item["name"]: item["digest"]["sha256"] for item in json.loads(envelope.payload)["subject"]}
        except (ValueError, KeyError, exceptions.VerificationError):
            wrong.append(f"{file} is not signed with this key")
            continue
        if said != {item: known["sha256"] for item, known in stage.manifest(result)["outputs"].items()}:
            wrong.append(f"{file} is about another result than lies there")
        else:
            say(f"{name:<7} signed")
    return [*wrong, *_model(config, key, say)]


def _model(config: Config, key: Path, say: Say) -> Iterator[str]:
    merged, signature = pipeline.folder(config) / "merged", pipeline.folder(config) / FOLDER / MODEL
    if not signature.is_file():
        return
    from model_signing import verifying

    try:
        verifying.Config().use_elliptic_key_verifier(public_key=key).verify(merged, signature)
        say("model   signed")
    except ValueError as error:
        yield f"{signature}: {' '.join(str(error).split())[:200]}"


def _made(config: Config) -> Iterator[tuple[str, Path]]:
    results = [(name, pipeline.stage(name, config).result) for name in pipeline.ORDER]
    made = [(name, result) for name, result in results if (result / provenance.FILE).is_file()]
    if not made:
        raise ResultError("nothing is made yet that could be signed", "run: make merge")
    yield from made


def _key(path: Path, private: bool) -> Any:
    """Return a key from a PEM file; MachineError without the extra, UsageError for what is no such key."""
    try:
        from cryptography.hazmat.primitives import serialization
        from model_signing import signing  # noqa: F401
    except ImportError:
        raise MachineError(
            "signing is an optional extra, which is not installed here", "make install EXTRA=sign"
        ) from None
    try:
        content = path.read_bytes()
        return (
            serialization.load_pem_private_key(content, None) if private else serialization.load_pem_public_key(content)
        )
    except (OSError, ValueError, TypeError) as error:
        kind = "private" if private else "public"
        raise UsageError(
            f"KEY={path} is no {kind} key in PEM ({error})", "openssl ecparam -genkey -name prime256v1"
        ) from None
