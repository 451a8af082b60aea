"""Training and publishing on a full disk, killed at any moment, and two at once: best_model.pth always loads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.kit import ROOT
from tests.faults.kit import counts
from training.synthesize import synthesize


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    synthesize(folder, count=6, size_px=128, seed=0)
    return folder


def play(scene: str, work: str, data: Path, folder: Path, count: int) -> None:
    command = [sys.executable, "-m", "tests.faults.mortal", scene, work, str(data), str(folder), "--count", str(count)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    print(ended.stdout.strip())


@pytest.mark.parametrize("count", counts(short=3, long=100))
@pytest.mark.parametrize("work", ["fit", "publish"])
def test_killed_at_any_moment_the_weights_in_service_load_and_the_next_run_goes_on(
    data: Path, tmp_path: Path, work: str, count: int
) -> None:
    play("kill", work, data, tmp_path, count)


@pytest.mark.parametrize("count", counts(short=3, long=100))
@pytest.mark.parametrize("work", ["fit", "publish"])
def test_a_full_disk_leaves_the_weights_in_service_and_is_said_in_words(
    data: Path, tmp_path: Path, work: str, count: int
) -> None:
    play("full", work, data, tmp_path, count)


@pytest.mark.parametrize("count", counts(short=2, long=20))
@pytest.mark.parametrize("work", ["fit", "publish"])
def test_two_at_once_do_not_spoil_each_other_s_work(data: Path, tmp_path: Path, work: str, count: int) -> None:
    play("race", work, data, tmp_path, count)
