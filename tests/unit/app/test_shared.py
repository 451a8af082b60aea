"""The folder that worker processes share: made, held, and removed when nobody holds it any more."""

import os
import tempfile
from pathlib import Path

import pytest

from app.shared import PREFIX, hold, make_shared_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def fill(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "counter_0.db").write_bytes(bytes(100))
    return folder


def test_it_is_there_for_its_user_alone_and_goes_with_its_files(temporary: Path) -> None:
    with make_shared_folder() as folder:
        assert folder.parent == temporary
        assert folder.stat().st_mode & 0o777 == 0o700
        fill(folder)
    assert not list(temporary.iterdir())


def test_one_that_is_left_by_the_killed_is_removed_and_one_in_use_is_not(temporary: Path) -> None:
    left = fill(temporary / f"{PREFIX}left")
    with make_shared_folder() as other:
        assert not left.exists()
        fill(other)
        with make_shared_folder() as own:
            assert {other, own} == set(temporary.iterdir())
            assert (other / "counter_0.db").exists()


def test_a_worker_that_outlives_its_supervisor_keeps_it(temporary: Path) -> None:
    kept = fill(temporary / f"{PREFIX}kept")
    descriptor = hold(kept)
    with make_shared_folder():
        assert (kept / "counter_0.db").exists()
    os.close(descriptor)
    with make_shared_folder():
        assert not kept.exists()


def test_what_is_of_another_kind_or_another_user_s_stays(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = fill(temporary / "target")
    link, file = temporary / f"{PREFIX}link", temporary / f"{PREFIX}file"
    link.symlink_to(target)
    file.write_text("a file")
    foreign = fill(temporary / f"{PREFIX}foreign")
    monkeypatch.setattr(os, "getuid", lambda: foreign.stat().st_uid + 1)
    with make_shared_folder():
        assert (target / "counter_0.db").exists()
        assert link.is_symlink()
        assert file.exists()
        assert (foreign / "counter_0.db").exists()


def test_one_that_was_taken_for_a_leftover_before_it_was_held_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def make_and_lose_the_first(prefix: str) -> str:
        folder = Path(make(prefix=prefix))
        made.append(folder)
        if len(made) == 1:
            folder.rmdir()
        return str(folder)

    make = tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", make_and_lose_the_first)
    with make_shared_folder() as folder:
        assert made[1:] == [folder]
        assert folder.is_dir()
