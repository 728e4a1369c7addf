"""A stage in a container: as its caller, with nothing it does not need, and gone when it is not wanted any more."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import boxes
import pytest
from tests.graph import scratch

from temper import containers, runtime
from temper.containers import Container, Engine
from temper.errors import ConfigError, MachineError
from temper.images import provide

pytestmark = [pytest.mark.slow, pytest.mark.containers]
CONFIG = {
    "runtime": "docker",
    "gpu": False,
    "scenario": "customer-service",
    "profile": "cpu",
    "determinism": "machine",
    "data": {"path": "data/customer-service/rows.csv"},
    "train": {},
}
LOOK = """
import json, os, pathlib, socket
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
refused = []
for path in ("/x", "/usr/x", "Makefile", "scripts/x"):
    try: open(path, "a").close()
    except OSError as error: refused.append(path)
pathlib.Path("build/written-by-a-test").write_text("x")
print(json.dumps({
    "uid": os.getuid(), "gid": os.getgid(), "capabilities": [status[key] for key in status if key.startswith("Cap")],
    "no_new": status["NoNewPrivs"], "refused": refused, "links": os.listdir("/sys/class/net"), "cwd": os.getcwd(),
    "environment": dict(os.environ), "shm": os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize,
    "own name": socket.gethostbyname(socket.gethostname()),
}))
"""


def inside(engine: Engine, program: str) -> str:
    """Run a program in the container that a stage gets and return what it prints."""
    box = runtime.box({**CONFIG, "runtime": engine.name}, provide.ensure(engine, "temper-cpu", print), ["-c", program])
    argv = containers.run_command(engine, box)
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=boxes.environment()
    ) as ran:
        assert ran.stdout
        said = ran.stdout.read()
    assert ran.returncode == 0
    return said


def test_a_stage_runs_as_its_caller_with_nothing_more(engine: Engine) -> None:
    """Own uid and gid, no capabilities, read-only root and repository, writable build folder, no network, offline."""
    found = json.loads(inside(engine, LOOK))
    assert (found["uid"], found["gid"], found["cwd"]) == (os.getuid(), os.getgid(), str(boxes.ROOT))
    assert {int(value, 16) for value in found["capabilities"]} == {0}
    assert found["no_new"].strip() == "1"
    assert found["refused"] == ["/x", "/usr/x", "Makefile", "scripts/x"]
    assert found["links"] == ["lo"] and found["own name"].startswith("127.")
    offline = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "DO_NOT_TRACK"}
    assert {name: found["environment"].get(name) for name in offline} == dict.fromkeys(offline, "1")
    assert found["shm"] >= 256 << 20
    written = boxes.ROOT / "build/written-by-a-test"
    assert (written.stat().st_uid, written.stat().st_gid) == (os.getuid(), os.getgid())
    written.unlink()


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a build folder that has the base model and the rows."""
    folder = tmp_path_factory.mktemp("build of containers") / "build"
    boxes.make("model", f"BUILD={folder}", "RUNTIME=podman")
    return folder


def test_no_name_lookup_leaves_a_stage(engine: Engine, build: Path) -> None:
    """Data, training, merge and gate ask for no name at all, shown by a resolver on the container's own loopback."""
    count = build / f"{engine.name}-lookups"
    shutil.rmtree(build / "customer-service", ignore_errors=True)
    program = Path(__file__).with_name("trapped_stages.py")
    more = {"TEMPER_BUILD": str(build), "PYTHONPATH": "scripts", "OMP_NUM_THREADS": "1"}
    done = boxes.run(sys.executable, program, engine.name, count, **more)
    rows = [list(map(int, line.split())) for line in count.read_text().splitlines()]
    assert len(rows) >= 2, done.stdout + done.stderr  # an adapter of four steps may not pass the gate, which is fine
    assert "train" in done.stdout and "merge   starts" in done.stdout, done.stdout + done.stderr
    assert [stages for stages, _ in rows] == [0] * len(rows)
    assert all(trap > 0 for _, trap in rows)


def running(engine: Engine) -> list[str]:
    """Return the names of the stages' containers."""
    return engine.run("ps", "--all", "--filter", "name=^temper-[0-9a-f]", "--format", "{{.Names}}").split()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9 of make"])
def test_nothing_trains_on(engine: Engine, build: Path, how: signal.Signals) -> None:
    """Ctrl-C stops the container, and so does the death of make, which cannot tell anybody; the next make resumes."""
    words = ["make", "train", f"RUNTIME={engine.name}", f"BUILD={build}", "SET=train.save_steps=2"]
    started = subprocess.Popen(
        words,
        cwd=boxes.ROOT,
        env=boxes.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert started.stdout
        while not (line := started.stdout.readline()).startswith("train   step"):
            assert line, "training never began"
        assert len(running(engine)) == 1
        os.killpg(started.pid, how) if how is signal.SIGINT else os.kill(started.pid, how)
        started.wait(30)
        until = time.monotonic() + 30
        while running(engine) and time.monotonic() < until:
            time.sleep(0.2)
        assert running(engine) == []
        assert subprocess.run(["pgrep", "-f", f"temper stage train .*{engine.name}"], capture_output=True).stdout == b""
    finally:
        started.kill()
        started.communicate()


def test_torchrun_needs_no_network(build: Path) -> None:
    """LLaMA Factory's launcher trains in two processes that find each other inside, blanks in BUILD or not."""
    settings = "SET=train.max_steps=2 train.max_samples=16"
    more = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2", "OMP_NUM_THREADS": "1"}
    boxes.make("train", "RUNTIME=docker", f"BUILD={build}", settings, **more)
    log = (build / "customer-service/cpu/adapter/run.log").read_text()
    assert "Initializing 2 distributed tasks at: 127.0.0.1" in log and "Process rank: 1, world size: 2" in log


def test_a_path_with_spaces_and_rows_from_elsewhere(engine: Engine, tmp_path: Path) -> None:
    """The repository, the build folder and the rows may lie in folders with spaces; the rows outside the repository."""
    repo = boxes.copy(tmp_path / "a path with spaces")
    scratch.small_model(scratch.Repo(repo))
    rows = tmp_path / "my rows" / "rows of mine.csv"
    rows.parent.mkdir()
    shutil.copy2(boxes.ROOT / "data/customer-service/rows.csv", rows)
    boxes.make("data", f"RUNTIME={engine.name}", f"BUILD={tmp_path / 'my build'}", f"SET=data.path='{rows}'", cwd=repo)
    made = tmp_path / "my build" / "customer-service" / "cpu" / "data"
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["made_from"]["image"].startswith("sha256:")
    assert manifest["tools"]["python"] == "3.11.2"
    for path in (made, made / "train.jsonl"):
        assert (path.stat().st_uid, path.stat().st_gid) == (os.getuid(), os.getgid())


def test_all_rows_from_elsewhere_are_seen(tmp_path: Path) -> None:
    """Each file and folder of rows that lies outside the repository is given to the container, to read only."""
    (tmp_path / "linked").symlink_to(tmp_path / "held")
    data = {"path": [str(tmp_path / "a.csv"), "data"], "eval_path": str(tmp_path / "linked")}
    mounts = runtime.box({**CONFIG, "data": data}, "image", []).mounts
    found = {path: writable for path, writable in mounts.items() if path.is_relative_to(tmp_path.resolve())}
    assert found == {tmp_path.resolve() / name: False for name in ("a.csv", "held")}


def test_going_to_another_runtime_makes_nothing_again(engine: Engine, tmp_path: Path) -> None:
    """A result of the same lock is current in every runtime; another image than the recorded one makes it stale."""
    repo = boxes.copy(tmp_path / "repo")
    scratch.small_model(scratch.Repo(repo))
    boxes.make("data", f"RUNTIME={engine.name}", cwd=repo)
    other = "podman" if engine.name == "docker" else "docker"
    assert "starts" not in boxes.make("data", f"RUNTIME={other}", cwd=repo)
    lock = repo / "docker/images.lock"
    wanted = json.loads(lock.read_text())
    wanted["temper-cpu"]["image"] = "sha256:" + "0" * 64
    lock.write_text(json.dumps(wanted))
    assert "the image changed" in boxes.make("plan", f"RUNTIME={other}", cwd=repo)


ROOTLESS = """
import json, os, sys
from pathlib import Path
from temper import containers
engine = containers.find("podman")
program = "open('from the container', 'w').write('x')"
box = containers.Container(
    "localhost/debian-layer:test", ["python3", "-c", program], mounts={Path.cwd(): True},
    workdir=str(Path.cwd()), environment={"HF_HUB_OFFLINE": "1"}, more=("--rm",),
)
print(json.dumps([engine.rootless, containers.run_command(engine, box)]))
"""


def test_rootless_podman(image: str, tmp_path: Path) -> None:
    """Another user without rights on this machine runs the same command line; what is written belongs to that user."""
    program = (
        "import sys\nfrom temper.images import build, oci\nfrom temper.images.layers import Layer\n"
        "first = build.build('temper-cpu', '', lambda line: None).layers[0]\n"
        "made = oci.assemble('debian-layer', [first], build.BLOBS, {'Env': oci.environment({})}, {})\n"
        "oci.stream(made, build.BLOBS, ['localhost/debian-layer:test'], open(sys.argv[1], 'wb'))"
    )
    boxes.run("useradd", "--create-home", "temper-rootless")
    home = Path("/home/temper-rootless")
    tar, code, place = home / "layer.tar", home / "scripts", home / "a place with spaces"
    boxes.python(program, tar, interpreter=boxes.HOST_PYTHON)
    shutil.copytree(boxes.ROOT / "scripts", code, dirs_exist_ok=True)
    place.mkdir(exist_ok=True)
    boxes.run("chown", "-R", "temper-rootless:", home)
    run_time = home / "run"

    def as_user(*words: str) -> subprocess.CompletedProcess[str]:
        run_time.mkdir(exist_ok=True, mode=0o700)
        shutil.chown(run_time, "temper-rootless")
        settings = [f"HOME={home}", f"XDG_RUNTIME_DIR={run_time}", f"PYTHONPATH={code}", f"PATH={os.environ['PATH']}"]
        return boxes.run("runuser", "-u", "temper-rootless", "--", "env", "-i", *settings, *words, cwd=place)

    try:
        loaded = as_user("podman", "load", "--quiet", "--input", str(tar))
        assert loaded.returncode == 0, loaded.stderr
        asked = as_user("/usr/bin/python3", "-c", ROOTLESS)
        assert asked.returncode == 0, asked.stderr
        rootless, argv = json.loads(asked.stdout)
        assert rootless and "--userns=keep-id" in argv
        done = as_user(*argv)
        assert done.returncode == 0, done.stderr
        assert (place / "from the container").owner() == "temper-rootless"
    finally:
        as_user("podman", "system", "reset", "--force")
        boxes.run("userdel", "--remove", "temper-rootless")


def command(engine: Engine, **changes: object) -> list[str]:
    """Return a command line for an engine that need not be here."""
    return containers.run_command(engine, Container(image="image", command=["x"], **changes))  # type: ignore[arg-type]


def test_gpus_as_each_engine_wants_them() -> None:
    """Docker gets --gpus, podman and a Docker with CDI get device names; without GPUs neither."""
    docker, podman, cdi = Engine("docker"), Engine("podman", cdi=True), Engine("docker", cdi=True)
    assert "--gpus=all" in command(docker, gpus=("all",))
    assert '--gpus="device=0,2"' in command(docker, gpus=("0", "2"))
    for engine in (podman, cdi):
        words = command(engine, gpus=("0", "GPU-3a"))
        assert "--device=nvidia.com/gpu=0" in words and "--device=nvidia.com/gpu=GPU-3a" in words
    assert not any("gpu" in word for word in command(docker))


@pytest.mark.parametrize(
    ("listed", "gpus"), [("0,1", ("0", "1")), ("void", ()), ("none", ()), ("all", ("all",)), ("", ())]
)
def test_nvidia_visible_devices_is_respected(
    listed: str, gpus: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable that NVIDIA's containers know says which GPUs a stage sees."""
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", listed)
    assert containers.visible_gpus() == gpus
    assert runtime.box({**CONFIG, "gpu": True}, "image", []).gpus == gpus


def test_several_machines_get_a_network_and_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """One machine trains without a network; several talk over the host's, with torchrun's variables passed on."""
    assert runtime.box({**CONFIG, "gpu": True}, "image", []).network == "none"
    for name, value in {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    box = runtime.box({**CONFIG, "gpu": True}, "image", [])
    assert box.network == "host" and box.environment["MASTER_ADDR"] == "10.0.0.1"


def test_shared_memory_grows_with_the_loader_and_the_gpus() -> None:
    """1 GiB for each GPU's communication, and room for two batches of each worker."""
    none = containers.shared_memory({}, 0)
    loader = {"dataloader_num_workers": 4, "per_device_train_batch_size": 8, "cutoff_len": 4096}
    assert containers.shared_memory(loader, 1) == none + (1 << 30) + 4 * 2 * 8 * 4096 * 24
    assert containers.shared_memory({}, 8) == none + (8 << 30)


def test_selinux_and_user_namespaces() -> None:
    """Every mount is labelled for containers; a rootless engine maps the caller, a rootful one is told the uid."""
    words = command(Engine("docker"), mounts={Path("/a b"): True}, at={Path("/m"): "/model"})
    assert "--volume=/a b:/a b:rw,z" in words and "--volume=/m:/model:ro,z" in words
    assert f"--user={os.getuid()}:{os.getgid()}" in words
    assert "--userns=keep-id" in command(Engine("podman", rootless=True))
    assert "--user=0:0" in command(Engine("docker", rootless=True))
    with pytest.raises(ConfigError, match="colon"):
        command(Engine("docker"), mounts={Path("/a:b"): True})


def test_the_default_follows_the_machine() -> None:
    """With a GPU and an engine stages run there with profile gpu-24g, which is said; quickstart stays on the CPU."""
    gpu = "GPU=/dev/nvidiactl"
    said = boxes.make("plan", gpu)
    assert "profile gpu-24g" in said and "runtime docker, temper-cuda sha256:" in said
    assert "profile cpu, model smollm2-135m, runtime local" in boxes.make("plan", "GPU=")
    assert "--profile 'cpu'" in boxes.make("--dry-run", "quickstart", gpu)
    assert "--runtime 'local'" in boxes.make("--dry-run", "quickstart", gpu)


def test_an_engine_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """RUNTIME=docker without Docker, or with one that does not answer, ends with what to install or start."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    with pytest.raises(MachineError, match=r"does not answer.*systemctl start docker.*RUNTIME=local"):
        containers.find("docker")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match=r"there is no docker.*apt-get install docker\.io"):
        containers.find("docker")
    with pytest.raises(ConfigError, match="local, docker and podman"):
        containers.find("lxc")
