"""What is kept is found again whole or not at all, and nothing that goes wrong with it keeps a network from running."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from model.checkpoint import read_checkpoint
from model.compiled_cache import MAX_FILES, CompiledCache, default_folder
from model.openvino_runtime import OpenVinoRuntime
from model.twin import read_twin, twin_path
from tests.e2e.kit import write_small_twin, write_weights

BATCH = np.random.default_rng(0).random((1, 1, 128, 128), dtype=np.float32)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "cells.pth"
    write_weights(path, tile_px=(128,))
    write_small_twin(path)
    return path


def start(weights: Path, folder: Path | None) -> OpenVinoRuntime:
    checkpoint = read_checkpoint(weights)
    twin = read_twin(weights, checkpoint.version)
    assert twin is not None
    return OpenVinoRuntime(checkpoint, twin=twin.twin, threads=2, cache=CompiledCache(folder))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A line for each time that a network is compiled."""
    calls: list[object] = []
    real = ov.Core.compile_model

    def count(self: ov.Core, *arguments: object, **options: object) -> object:
        calls.append(arguments)
        return real(self, *arguments, **options)

    monkeypatch.setattr(ov.Core, "compile_model", count)
    return calls


def test_the_second_start_compiles_nothing_and_answers_the_same_bytes(
    weights: Path, tmp_path: Path, compiled: list[object]
) -> None:
    folder = tmp_path / "cache"
    expected = start(weights, folder).run(BATCH).tobytes()
    assert len(compiled) == 1  # for one core; the other way is read back already
    assert folder.stat().st_mode & 0o777 == 0o700
    again = start(weights, folder)
    assert len(compiled) == 1
    assert again.run(BATCH).tobytes() == again.run(BATCH, alone=True).tobytes() == expected
    assert start(weights, None).run(BATCH).tobytes() == expected


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "whole but nonsense"])
def test_a_damaged_file_is_compiled_anew_and_mended(
    weights: Path, tmp_path: Path, compiled: list[object], damage: str
) -> None:
    folder = tmp_path / "cache"
    expected = start(weights, folder).run(BATCH).tobytes()
    [file] = folder.iterdir()
    data = file.read_bytes()
    if damage == "whole but nonsense":
        CompiledCache(folder).store(file.stem, b"no network" * 100)
    else:
        file.write_bytes({"cut": data[:-9], "changed": data[:-9] + bytes(9), "empty": b""}[damage])
    compiled.clear()
    assert start(weights, folder).run(BATCH).tobytes() == expected
    assert len(compiled) >= 1
    compiled.clear()
    assert start(weights, folder).run(BATCH).tobytes() == expected
    assert compiled == []


def test_other_weights_or_another_twin_are_other_networks(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    start(weights, folder)
    write_weights(weights, seed=1, tile_px=(128,))
    write_small_twin(weights)
    start(weights, folder)
    twin = json.loads(twin_path(weights).read_text())
    twin["quantisers"][0]["high"] *= 1.00001
    twin_path(weights).write_text(json.dumps(twin))
    start(weights, folder)
    assert len(list(folder.iterdir())) == 3


def test_what_others_may_write_to_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    cache = CompiledCache(folder)
    cache.store("key", b"blob")
    assert cache.load("key") is None
    assert list(folder.iterdir()) == []
    assert "may be written to by others" in caplog.text


def test_a_place_where_nothing_can_be_kept_changes_nothing(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/maskwell")):
        assert start(weights, folder).run(BATCH).shape == (1, 1, 128, 128)


def test_a_folder_that_may_only_be_read_still_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CompiledCache(tmp_path / "cache").store("key", b"blob")

    def refuse(self: Path, *arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "touch", refuse)  # to root, whom a container's builder may be, no mode forbids it
    assert CompiledCache(tmp_path / "cache").load("key") == b"blob"


def test_what_was_not_used_for_longest_goes(tmp_path: Path) -> None:
    cache = CompiledCache(tmp_path / "cache")
    for number in range(MAX_FILES):
        cache.store(f"k{number}", b"blob")
        os.utime(tmp_path / "cache" / f"k{number}.blob", (number, number))
    assert cache.load("k0") == b"blob"  # used now
    cache.store("new", b"blob")
    assert (cache.load("k0"), cache.load("k1"), cache.load("k2"), cache.load("new")) == (
        b"blob",
        None,
        b"blob",
        b"blob",
    )


def test_the_default_is_in_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "maskwell"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_folder() == Path("/home/someone/.cache/maskwell")
