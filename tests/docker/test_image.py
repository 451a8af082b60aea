"""The image as an operator who trusts nobody runs it: the end-to-end tests inside it, with nothing but a loopback.

    python -m pytest tests/docker -m docker

Needs what test_compose.py needs. The container has no network, a read-only root, an ordinary user and no capability.
"""

import os
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NETWORK = ["--network", "host"] if os.environ.get("MASKWELL_TEST_HOST_NETWORK") == "1" else []
LOCKED = [
    "--network", "none", "--read-only", "--tmpfs", "/tmp:mode=1777,size=2g", "--cap-drop", "ALL",
    "--security-opt", "no-new-privileges", "--no-healthcheck",
]  # fmt: skip
SERVE, TEST = "maskwell-e2e:serve", "maskwell-e2e:test"

pytestmark = [pytest.mark.docker, pytest.mark.timeout(3600)]


def docker(*arguments: str, stdin: str = "") -> str:
    ended = subprocess.run(["docker", *arguments], capture_output=True, text=True, input=stdin, check=False)
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-6000:]
    return ended.stdout


@pytest.fixture(scope="module")
def image() -> str:
    """The serving image, and pytest on top of it."""
    docker("build", *NETWORK, "--build-arg", "DEVICE=cpu", "--tag", SERVE, str(ROOT))
    tools = " ".join(f"{name}=={version(name)}" for name in ("pytest", "pytest-timeout"))
    recipe = f"FROM {SERVE}\nUSER root\nRUN pip install --no-cache-dir {tools}\nUSER 10001:10001\n"
    docker("build", *NETWORK, "--tag", TEST, "-", stdin=recipe)
    return TEST


def test_it_passes_the_end_to_end_tests_without_a_network_on_a_read_only_file_system(image: str) -> None:
    mounts = [f"--volume={ROOT / name}:/opt/maskwell/{name}:ro" for name in ("tests", "docs", "pyproject.toml")]
    said = docker(
        "run", "--rm", *LOCKED, *mounts, "--workdir", "/opt/maskwell", image,
        "python", "-m", "pytest", "tests/e2e", "-q", "-p", "no:cacheprovider",
        "--deselect", "tests/e2e/test_client.py::test_other_commands_have_their_own_help",  # it holds no training
    )  # fmt: skip
    summary = said.strip().splitlines()[-1]
    assert " passed" in summary
    assert "skipped" not in summary
    print(summary)


def test_there_is_nothing_but_a_loopback_and_nowhere_to_write(image: str) -> None:
    script = """
import os
from pathlib import Path
print(sorted(line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]))
print(os.getuid())
for folder in ("/", "/opt/maskwell/app", "/opt/venv", "/etc", "/work", "/weights", "/var/tmp"):
    try:
        Path(folder, "x").touch()
        print("wrote to", folder)
    except OSError:
        pass
"""
    assert docker("run", "--rm", *LOCKED, image, "python", "-c", script).splitlines() == ["['lo']", "10001"]


def test_training_is_not_in_it(image: str) -> None:
    script = (
        "import importlib.util as u; print([n for n in ('training', 'nncf', 'lightning_fabric') if u.find_spec(n)])"
    )
    assert docker("run", "--rm", *LOCKED, image, "python", "-c", script).strip() == "[]"
