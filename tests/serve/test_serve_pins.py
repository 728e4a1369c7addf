"""Pins of the served images: looked up in a real registry on loopback, pulled by digest, the same in every file.

Docker, skopeo, docker-registry and Compose must be there: without them these tests fail.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import serve_model
import yaml
from serving import free_port
from test_serve_boxed import docker, image  # noqa: F401 - a fixture

from temper import containers, paths
from temper.errors import MachineError, ResultError, UsageError
from temper.images import pin

pytestmark = pytest.mark.containers
ROOT = Path(__file__).resolve().parents[2]
NAME = "huggingface/text-generation-inference"
OCI = "application/vnd.oci.image"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a registry on loopback and return its address."""
    here, address = tmp_path_factory.mktemp("registry"), f"127.0.0.1:{free_port()}"
    settings = {"version": 0.1, "log": {"level": "error"}, "http": {"addr": address, "secret": "x"}}
    settings["storage"] = {"filesystem": {"rootdirectory": str(here / "data")}}
    (here / "config.yml").write_text(yaml.safe_dump(settings))
    serving = subprocess.Popen(
        ["docker-registry", "serve", str(here / "config.yml")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(100):
            try:
                httpx.get(f"http://{address}/v2/", trust_env=False)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield address
    finally:
        serving.terminate()
        serving.wait()


def push(registry: str, folder: Path, tag: str, *platforms: str) -> str:
    """Push a tiny image for some processors, as one index, and return the index's digest."""
    blobs = folder / tag / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(content: bytes, kind: str, **more: Any) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": f"{OCI}.{kind}", "digest": f"sha256:{digest}", "size": len(content), **more}

    def packed(value: dict[str, Any], kind: str, **more: Any) -> dict[str, Any]:
        return blob(json.dumps(value).encode(), kind, **more)

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(f"for-{tag}"))
    layer, manifests = blob(out.getvalue(), "layer.v1.tar"), []
    for platform in platforms:
        roots = {"type": "layers", "diff_ids": [layer["digest"]]}
        system = {"os": "linux", "architecture": platform}
        config = packed({**system, "rootfs": roots, "config": {}}, "config.v1+json")
        manifest = {"schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json", "config": config, "layers": [layer]}
        manifests.append(packed(manifest, "manifest.v1+json", platform=system))
    index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": manifests}
    named = packed(index, "index.v1+json", annotations={"org.opencontainers.image.ref.name": tag})
    (folder / tag / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / tag / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    words = ["skopeo", "copy", "--all", "--preserve-digests", "--dest-tls-verify=false", f"oci:{folder / tag}:{tag}"]
    done = subprocess.run([*words, f"docker://{registry}/{NAME}:{tag}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return str(named["digest"])


@pytest.fixture
def site(registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with the shipped lock and compose file, with the registry as mirror."""
    (tmp_path / "docker").mkdir()
    for name in ("images.lock", "compose.yaml"):
        shutil.copy(ROOT / "docker" / name, tmp_path / "docker" / name)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEMPER_REGISTRY", registry)
    return tmp_path


def lock(site: Path) -> dict[str, Any]:
    """Return the lock."""
    return dict(json.loads((site / "docker/images.lock").read_text()))


def test_a_tag_is_looked_up_recorded_and_pulled_by_digest(
    site: Path, registry: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The index's digest goes into the lock and the compose file, and is what Docker is asked for."""
    before = lock(site)
    digest = push(registry, site, "9.0.1", "arm64", "amd64")
    assert pin.run(["tgi", "9.0.1"]) == 0
    said = capsys.readouterr().out
    assert said == f"pin     tgi {before['tgi']['tag']} {before['tgi']['digest']} -> 9.0.1 {digest}\n"
    after = lock(site)
    assert {key: value for key, value in after.items() if key != "tgi"} == {
        k: v for k, v in before.items() if k != "tgi"
    }
    assert (after["tgi"]["tag"], after["tgi"]["digest"]) == ("9.0.1", digest)
    assert (site / "docker/compose.yaml").read_text().count(f"{NAME}@{digest}") == 1
    assert pin.run(["tgi", ""]) == 0 and f"tgi 9.0.1 is {digest}, as recorded" in capsys.readouterr().out
    wanted = f"{registry}/{NAME}@{digest}"
    for name in containers.ENGINES:
        engine, pulled = containers.find(name), list[str]()
        try:
            assert [pin.ensure(engine, "tgi", pulled.append) for _ in range(2)] == [wanted, wanted]
            assert pulled == [f"image   {name} pulls {wanted} (9.0.1)"]
            assert engine.run("image", "inspect", "--format", "{{.Architecture}}", wanted).strip() == "amd64"
        finally:
            engine.run("rmi", wanted, check=False)


def test_what_cannot_be_pinned_or_pulled_says_what_to_do(
    site: Path, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown tag or image, another processor, no skopeo, a digest that is nowhere: one line each."""
    before = lock(site)
    push(registry, site, "9.0.2", "arm64")
    for words, kind, said in (
        (["tgi", "no-such-tag"], MachineError, r"no-such-tag cannot be looked up: .*TEMPER_REGISTRY"),
        (["tgi", "9.0.2"], MachineError, r"@sha256:.* cannot be looked up: .*no image found .* for architecture amd64"),
        (["sglang", "1"], UsageError, r"sglang is none of the served images; write one of tgi, vllm"),
        (["", "3.3.7"], UsageError, r"make pin ENGINE=tgi TAG=3\.3\.7"),
        (["tgi", "1", "2"], UsageError, "too many words"),
    ):
        with pytest.raises(kind, match=said) as told:
            pin.run(words)
        assert "\n" not in str(told.value)
    with pytest.raises(MachineError, match=rf"docker pull failed: .*by hand: docker pull {registry}/.*TEMPER_REGISTRY"):
        pin.ensure(containers.find("docker"), "tgi", lambda _: None)
    monkeypatch.setenv("PATH", str(site))
    with pytest.raises(MachineError, match="apt-get install skopeo"):
        pin.run(["tgi", "3.3.7"])
    assert lock(site) == before
    (site / "docker/images.lock").write_text("{}")
    with pytest.raises(ResultError, match=r"docker/images\.lock has no tgi; make pin ENGINE=tgi"):
        pin.reference("tgi")


def test_where_an_image_is_pulled_from(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror may have a path; without one each image comes from its maker's registry."""
    digest = lock(site)["tgi"]["digest"]
    monkeypatch.setenv("TEMPER_REGISTRY", "mirror.example:5000/cache/")
    assert pin.reference("tgi") == f"mirror.example:5000/cache/{NAME}@{digest}"
    monkeypatch.delenv("TEMPER_REGISTRY")
    assert pin.reference("tgi") == f"{pin.REGISTRIES['tgi']}/{NAME}@{digest}"


def compose() -> dict[str, Any]:
    """Return docker/compose.yaml."""
    return dict(yaml.safe_load((ROOT / "docker/compose.yaml").read_text()))


def test_the_compose_file_has_the_locks_digests_and_no_other_registry() -> None:
    """It cannot read the lock, so `make pin` writes both, and this compares them."""
    known = json.loads((ROOT / "docker/images.lock").read_text())
    for name, service in compose()["services"].items():
        engine = name.partition("-")[0]
        if engine == "local":
            assert service["image"] == "${TEMPER_IMAGE:-localhost/temper-serve:latest}"
        else:
            place, _, digest = service["image"].rpartition(f"/{known[engine]['name']}@")
            assert (digest, place) == (known[engine]["digest"], f"${{TEMPER_REGISTRY:-{pin.REGISTRIES[engine]}}}")


def test_every_service_is_shut_in_and_looked_after() -> None:
    """Health check, restarts, limits, a read-only model and root, no capability, loopback only, offline."""
    services = compose()["services"]
    assert sorted(services) == ["local", "local-host", "tgi", "tgi-host", "vllm", "vllm-host"]
    for name, service in services.items():
        host = name.endswith("-host")
        assert service["profiles"] == [name if host else f"{name}-bridge"]
        assert service["restart"] == "unless-stopped" and service["healthcheck"]["test"][0] == "CMD"
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
        assert ("reservations" in service["deploy"]["resources"]) == (not name.startswith("local"))
        assert service["volumes"][0]["read_only"] and service["volumes"][0]["target"] == "/model"
        assert service["network_mode"] == ("host" if host else "bridge")
        assert service["ports"] == ([] if host else ["127.0.0.1:${PORT:-8000}:${PORT:-8000}"])
        said = service["environment"]
        assert said["HF_HUB_OFFLINE"] == said["TRANSFORMERS_OFFLINE"] == said["DO_NOT_TRACK"] == "1"
        assert said["USAGE_STATS"] == "off" and "API_KEY" not in said
    assert {"TEMPER_API_KEY"} == set(services["local"]["environment"]) - set(services["tgi"]["environment"])


def test_compose_serves_a_merged_model(image: str, folder: Path, tmp_path: Path) -> None:  # noqa: F811
    """`docker compose up -d` brings a server that becomes healthy, answers, and is gone after `down`."""
    program = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
    words = [*program, "-f", str(ROOT / "docker/compose.yaml")]
    env = os.environ | {"MODEL": str(folder), "TEMPER_NETWORK": "host", "TEMPER_IMAGE": image, "PORT": str(free_port())}
    env |= {
        "TEMPER_USER": f"{os.getuid()}:{os.getgid()}",
        "DTYPE": "float32",
        "COMPOSE_PROJECT_NAME": tmp_path.name[:20],
    }
    env.pop("ENGINE", None)
    label = f"label=com.docker.compose.project={tmp_path.name[:20]}"
    try:
        done = subprocess.run([*words, "up", "-d"], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        made, until = docker("ps", "--quiet", "--filter", label), time.monotonic() + 90
        while docker("inspect", "--format", "{{.State.Health.Status}}", made) != "healthy":
            assert time.monotonic() < until, docker("logs", made)
            time.sleep(0.5)
        question = "Who are you?"
        body = {"messages": [{"role": "user", "content": question}], "temperature": 0}
        url = f"http://127.0.0.1:{env['PORT']}/v1/chat/completions"
        answer = httpx.post(url, json=body, timeout=30, trust_env=False).json()
        assert answer["choices"][0]["message"]["content"] == serve_model.ANSWERS[question]
        held = json.loads(docker("inspect", "--format", "{{json .HostConfig}}", made))
        assert held["ReadonlyRootfs"] and held["Memory"] == 4 << 30 and held["NanoCpus"] == 2 * 10**9
        assert held["RestartPolicy"]["Name"] == "unless-stopped" and held["CapDrop"] == ["ALL"]
    finally:
        subprocess.run([*words, "down", "--timeout", "15"], env=env, capture_output=True)
    assert not docker("ps", "--all", "--quiet", "--filter", label)
    refused = subprocess.run([*words, "up", "-d"], env={**env, "MODEL": ""}, capture_output=True, text=True)
    assert refused.returncode and "set MODEL to the absolute path of a merged folder" in refused.stdout + refused.stderr
