"""Provenance of every result, and signatures that the projects they come from can check without a network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scratch import Repo

SIGNED = ("model", "data", "train", "merge")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a private and a public P-256 key."""
    folder = tmp_path_factory.mktemp("keys")
    private, public = folder / "key.pem", folder / "pub.pem"
    subprocess.run(["openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", private], check=True)
    subprocess.run(["openssl", "ec", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return private, public


def statement(folder: Path) -> dict[str, Any]:
    """Return the statement beside a result."""
    return dict(json.loads((folder / "run.intoto.json").read_text()))


def test_every_result_says_where_it_is_from(made: Repo) -> None:
    """in-toto's own library takes each statement as valid; subjects are the result's files, dependencies its inputs."""
    from google.protobuf.json_format import ParseDict
    from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
    from in_toto_attestation.v1.statement import Statement
    from in_toto_attestation.v1.statement_pb2 import Statement as Envelope

    for name, folder in made.results().items():
        said, manifest = statement(folder), json.loads((folder / "manifest.json").read_text())
        Statement.copy_from_pb(ParseDict(said, Envelope())).validate()
        ParseDict(said["predicate"], Provenance())  # refuses fields that SLSA's schema does not have
        outputs = {item["name"]: item["digest"]["sha256"] for item in said["subject"]}
        assert outputs == {item: known["sha256"] for item, known in manifest["outputs"].items()}
        definition = said["predicate"]["buildDefinition"]
        read = {item["name"]: item["digest"]["sha256"] for item in definition["resolvedDependencies"]}
        assert read.items() >= {(item, known["sha256"]) for item, known in manifest["made_from"]["inputs"].items()}
        assert read["lock"] == manifest["made_from"]["lock"]
        assert definition["externalParameters"]["stage"] == name


def test_signatures_hold_in_the_tools_of_their_projects(made: Repo, keys: tuple[Path, Path]) -> None:
    """After `make sign` ours and theirs agree: every envelope, and the model; a card added later changes nothing."""
    private, public = keys
    done = made.make("sign", KEY=str(private))
    assert done.code == 0, done.err
    folder = made.here / "signed"
    assert {path.name for path in folder.iterdir()} == {*(f"{name}.intoto.json" for name in SIGNED), "merged.sig"}
    (made.here / "merged" / "README.md").write_text("a card")
    checked = made.make("verify", KEY=str(public))
    assert checked.code == 0, checked.err
    assert checked.out.count(" signed") == len(SIGNED) + 1
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib import dsse, signer

    key = signer.SSlibKey.from_crypto(load_pem_public_key(public.read_bytes()))
    for name in SIGNED:
        envelope = dsse.Envelope.from_dict(json.loads((folder / f"{name}.intoto.json").read_text()))
        assert envelope.verify([key], 1)
        assert json.loads(envelope.payload) == statement(made.results()[name])
    words = ["verify", "key", "--signature", folder / "merged.sig", "--public_key", public, made.here / "merged"]
    theirs = subprocess.run([Path(sys.executable).with_name("model_signing"), *words], capture_output=True, text=True)
    assert theirs.returncode == 0, theirs.stdout + theirs.stderr


def test_another_key_and_another_result_are_noticed(made: Repo, keys: tuple[Path, Path], tmp_path: Path) -> None:
    """A signature by somebody else, one of an earlier result, a missing one and an altered model each have a line."""
    private, public = keys
    assert made.make("sign", KEY=str(private)).code == 0
    other = tmp_path / "other.pem"
    subprocess.run(["openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", other], check=True)
    theirs = tmp_path / "other.pub"
    subprocess.run(["openssl", "ec", "-in", other, "-pubout", "-out", theirs], check=True, capture_output=True)
    refused = made.make("verify", KEY=str(theirs))
    assert refused.code == 6 and "model.intoto.json is not signed with this key" in refused.err
    (made.here / "signed" / "data.intoto.json").unlink()
    assert made.merge(SET="train.learning_rate=7.0e-4") == ["train", "merge"]
    again = made.make("verify", KEY=str(public), SET="train.learning_rate=7.0e-4")
    assert again.code == 6
    assert "data is not signed" in again.err
    assert "train.intoto.json is about another result than lies there" in again.err
    assert "merged.sig: " in again.err


def test_what_is_no_key_is_named(made: Repo, keys: tuple[Path, Path], tmp_path: Path) -> None:
    """No file, another format and the other half of the pair end with one line, and sign nothing."""
    (tmp_path / "key").write_text("secret")
    for key in (tmp_path / "none", tmp_path / "key", keys[1]):
        done = made.make("sign", KEY=str(key))
        assert done.code == 2
        assert "is no private key in PEM" in done.err
    assert not (made.here / "signed").exists()


def test_an_altered_result_is_not_signed(made: Repo, keys: tuple[Path, Path]) -> None:
    """What is not as its manifest says is refused, and named."""
    with open(made.here / "merged" / "model.safetensors", "ab") as file:
        file.write(b"x")
    done = made.make("sign", KEY=str(keys[0]))
    assert done.code == 6
    assert "model.safetensors" in done.err
