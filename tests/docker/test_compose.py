"""The images and docker-compose.yml on a real engine: serve on the CPU, train, see the service take the new weights.

    python -m pytest tests/docker -m docker

Needs a Docker engine and Compose; builds the images, which takes minutes the first time. With
MASKWELL_TEST_HOST_NETWORK=1 everything shares the host's network, for engines that have no bridge.
"""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from model.images import decode_image
from training.synthesize import synthesize

ROOT = Path(__file__).parents[2]
HOST_NETWORK = os.environ.get("MASKWELL_TEST_HOST_NETWORK") == "1"
# few, small and quick, but real: the candidate is better than nothing, and --force says that this is enough
TRAIN_ARGS = "--epochs 1 --crops-per-epoch 8 --batch-size 2 --width 8 --crop-px 128 --warmup-steps 1 --quiet"

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Project:
    """A Compose project of its own, from the repository's docker-compose.yml."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._file = ROOT / "docker-compose.yml"
        self._name = f"maskwell-test-{os.getpid()}"
        self._environment = os.environ | {
            "MASKWELL_PUBLISH": f"127.0.0.1:{self.port}",
            "MASKWELL_DATA": str(data),
            "TRAIN_ARGS": TRAIN_ARGS,
            "PUBLISH_ARGS": "--force --quiet",
            "COMPOSE_PROFILES": "",
        }
        if HOST_NETWORK:
            self._file = folder / "docker-compose.yml"
            self._file.write_text(yaml.safe_dump(self._on_host_network()))
        self._command = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]

    def _on_host_network(self) -> dict[str, Any]:
        content: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
        content = {key: value for key, value in content.items() if not key.startswith("x-")}
        for service in content["services"].values():
            service["build"] |= {"context": str(ROOT), "network": "host"}
            if service.pop("ports", None):
                service["network_mode"] = "host"
                service["environment"] |= {"MASKWELL_PORT": str(self.port), "MASKWELL_HOST": "127.0.0.1"}
        return content

    def compose(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._command, "-f", str(self._file), "-p", self._name, *arguments],
            capture_output=True, text=True, env=self._environment, cwd=ROOT, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def inspect(self, service: str) -> dict[str, Any]:
        container = self.compose("--profile", "cpu", "ps", "-q", service).strip()
        found: list[dict[str, Any]] = json.loads(
            subprocess.run(["docker", "inspect", container], capture_output=True, text=True, check=True).stdout
        )
        return found[0]

    def version(self) -> str:
        version: str = httpx.get(f"{self.url}/models/best_model", timeout=30).raise_for_status().json()["version"]
        return version

    def wait_ready(self) -> None:
        deadline = time.monotonic() + 120
        while True:
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, self.compose("--profile", "cpu", "logs")
            time.sleep(0.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    synthesize(folder, count=6, size_px=128)
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Iterator[Project]:
    project = Project(tmp_path_factory.mktemp("compose"), data)
    try:
        project.compose("--profile", "cpu", "build")
        project.compose("--profile", "train", "build")
        project.compose("--profile", "cpu", "up", "-d")
        project.wait_ready()
        yield project
    finally:
        project.compose("--profile", "cpu", "--profile", "train", "down", "--volumes", "--timeout", "30")


def segment(project: Project, path: Path) -> httpx.Response:
    with path.open("rb") as file:
        return httpx.post(f"{project.url}/segment", files={"file": file}, timeout=120)


def test_the_service_segments_as_an_ordinary_user_on_a_read_only_file_system(project: Project, data: Path) -> None:
    answer = segment(project, data / "image" / "0000.png")
    assert answer.status_code == 200
    mask = decode_image(answer.content).pixels
    assert mask.shape == (128, 128)
    assert set(np.unique(mask)) <= {0, 255}

    container = project.inspect("maskwell-cpu")
    assert container["HostConfig"]["ReadonlyRootfs"]
    assert container["HostConfig"]["CapDrop"] == ["ALL"]
    status = subprocess.run(
        ["docker", "exec", container["Id"], "cat", "/proc/1/status"], capture_output=True, text=True, check=True
    ).stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == ["10001"] * 4
    assert int(fields["CapEff"], 16) == 0
    assert fields["NoNewPrivs"] == "1"


def test_the_container_becomes_healthy(project: Project) -> None:
    deadline = time.monotonic() + 90
    while (health := project.inspect("maskwell-cpu")["State"]["Health"])["Status"] != "healthy":
        assert time.monotonic() < deadline, health
        time.sleep(1)


def test_training_replaces_the_weights_that_the_running_service_serves(project: Project, data: Path) -> None:
    before, started = project.version(), project.inspect("maskwell-cpu")["State"]["StartedAt"]

    said = project.compose("--profile", "train", "run", "--rm", "train")

    assert "published /weights/best_model.pth as version" in said
    deadline = time.monotonic() + 60
    while (after := project.version()) == before:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    answer = segment(project, data / "image" / "0000.png")
    assert answer.headers["X-Model-Version"] == after
    card = httpx.get(f"{project.url}/models/best_model", timeout=30).json()["card"]
    assert card["recipe"]["width"] == 8
    assert project.inspect("maskwell-cpu")["State"]["StartedAt"] == started  # it was never restarted
