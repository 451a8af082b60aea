import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from app.errors import UnknownModelError, WeightsRefusedError
from app.registry import Registry
from app.settings import Settings
from model import Segmenter
from model.errors import WeightsError
from model.twin import twin_path
from tests.e2e.kit import write_small_twin, write_weights
from tests.faults.bad_weights import BOMB_MARK, SPOILERS


def run(
    folder: Path, work: Callable[[Registry], Coroutine[Any, Any, None]], **settings: Any
) -> list[tuple[int, float]]:
    observed: list[tuple[int, float]] = []

    async def main() -> None:
        registry = Registry(Settings(weights_dir=folder, device="cpu", **settings), lambda *seen: observed.append(seen))
        try:
            await registry.start()
            await work(registry)
        finally:
            registry.close()

    asyncio.run(main())
    return observed


def write(path: Path, seed: int = 0) -> str:
    return write_weights(path, seed, tile_px=(128,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "best_model.pth")
    return tmp_path


def test_every_file_is_a_model_and_the_default_answers_to_no_name(folder: Path) -> None:
    write(folder / "membranes.pth", 1)
    write(folder / ".hidden.pth", 2)
    write(folder / "two words.pth", 2)
    (folder / "notes.txt").write_text("no weights")

    async def work(registry: Registry) -> None:
        assert [model.name for model in registry.models] == ["best_model", "membranes"]
        assert registry.get(None) is registry.default is registry.get("best_model")
        with pytest.raises(UnknownModelError, match="'x'; there are best_model, membranes"):
            registry.get("x")
        assert registry.last_reload is None

    observed = run(folder, work)
    assert [pixels for pixels, _ in observed] == [128 * 128] * 2


def test_without_its_default_model_nothing_starts(tmp_path: Path) -> None:
    async def work(_: Registry) -> None:
        raise AssertionError("it started")

    for prepare in (lambda: None, lambda: (tmp_path / "best_model.pth").write_bytes(b"junk")):
        prepare()
        with pytest.raises(WeightsError, match=r"best_model\.pth"):
            run(tmp_path, work)
    with pytest.raises(WeightsError, match="cannot read"):
        run(tmp_path / "nowhere", work)


def test_another_model_that_cannot_be_used_is_left_out_and_named(folder: Path) -> None:
    (folder / "bad.pth").write_bytes(b"junk")

    async def work(registry: Registry) -> None:
        assert [model.name for model in registry.models] == ["best_model"]
        assert "bad.pth" in registry.refused["bad"]
        assert str(folder) not in registry.refused["bad"]

    run(folder, work)


def test_a_changed_file_is_swapped_in_and_the_old_segmenter_stays_whole(folder: Path) -> None:
    async def work(registry: Registry) -> None:
        old = registry.get(None)
        version = write(folder / "best_model.pth", 7)
        await registry.poll()
        assert registry.get(None).version == version != old.version
        assert old.segmenter.version == old.version
        assert registry.last_reload is not None
        assert (registry.last_reload.ok, registry.last_reload.version) == (True, version)

    run(folder, work)


def test_a_file_that_is_only_touched_or_written_again_is_not_loaded(folder: Path) -> None:
    async def work(registry: Registry) -> None:
        old = registry.get(None)
        (folder / "best_model.pth").touch()
        await registry.poll()
        copy = folder / ".copy"
        copy.write_bytes((folder / "best_model.pth").read_bytes())
        copy.replace(folder / "best_model.pth")
        await registry.poll()
        assert registry.get(None) is old
        assert registry.last_reload is None

    run(folder, work)


@pytest.mark.parametrize("kind", SPOILERS)
def test_a_bad_candidate_leaves_the_old_model_serving_and_is_reported_once(folder: Path, kind: str) -> None:
    async def work(registry: Registry) -> None:
        old = registry.get(None)
        SPOILERS[kind](folder / "best_model.pth")
        await registry.poll()
        assert registry.get(None) is old
        first = registry.last_reload
        assert first is not None
        assert (first.ok, first.version, first.error) == (False, old.version, registry.refused["best_model"])
        await registry.poll()
        assert registry.last_reload is first
        version = write(folder / "best_model.pth", 3)
        await registry.poll()
        assert registry.get(None).version == version
        assert registry.refused == {}

    run(folder, work)
    assert not BOMB_MARK.exists()


def test_models_come_and_go_with_their_files(folder: Path) -> None:
    async def work(registry: Registry) -> None:
        version = write(folder / "new.pth", 1)
        (folder / "bad.pth").write_bytes(b"junk")
        await registry.poll()
        assert registry.get("new").version == version
        assert list(registry.refused) == ["bad"]
        (folder / "new.pth").unlink()
        (folder / "bad.pth").unlink()
        await registry.poll()
        assert [model.name for model in registry.models] == ["best_model"]
        assert registry.refused == {}

    run(folder, work)


def test_a_file_whose_name_fits_no_model_is_named_as_long_as_it_lies_there(folder: Path) -> None:
    write(folder / "my model.pth", 1)

    async def work(registry: Registry) -> None:
        assert "names no model" in registry.refused["my model.pth"]
        (folder / "my model.pth").unlink()
        await registry.poll()
        assert registry.refused == {}

    run(folder, work)


def test_a_folder_that_is_gone_is_told_of_once_and_changes_nothing(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(registry: Registry) -> None:
        version = registry.get(None).version
        folder.rename(folder.with_name("away"))
        for _ in range(3):
            await registry.poll()
        assert registry.folder_error is not None
        assert "No such file" in registry.folder_error
        assert str(folder) not in registry.folder_error
        assert registry.get(None).version == version
        assert len([record for record in caplog.records if "cannot be looked into" in record.message]) == 1
        folder.with_name("away").rename(folder)
        await registry.poll()
        assert registry.folder_error is None

    run(folder, work)


def test_new_permissions_are_noticed(folder: Path) -> None:
    async def work(registry: Registry) -> None:
        before = dict(registry._seen)
        (folder / "best_model.pth").chmod(0o600)
        await registry.poll()
        assert registry._seen != before
        assert registry.last_reload is None  # the same bytes: nothing to load

    run(folder, work)


def test_the_default_model_outlives_its_file(folder: Path) -> None:
    async def work(registry: Registry) -> None:
        old = registry.get(None)
        (folder / "best_model.pth").unlink()
        await registry.poll()
        assert registry.get(None) is old
        with pytest.raises(WeightsRefusedError, match="gone"):
            await registry.reload("best_model")
        folder.rename(folder.with_name("away"))
        await registry.poll()
        assert registry.get(None) is old

    run(folder, work)


def test_a_reload_takes_names_from_the_folder_only(folder: Path) -> None:
    write(folder.parent / "outside.pth", 1)

    async def work(registry: Registry) -> None:
        for name in ("../outside", "outside", "", "."):
            with pytest.raises(UnknownModelError):
                await registry.reload(name)
        assert (await registry.reload("best_model")).version == registry.get(None).version

    run(folder, work)


def precision_of(registry: Registry) -> str:
    return registry.get(None).segmenter.runtime.precision


def test_an_int8_twin_that_comes_later_is_used_and_one_that_goes_is_not(folder: Path) -> None:
    async def work(registry: Registry) -> None:
        version = registry.get(None).version
        assert precision_of(registry) == "fp32"
        write_small_twin(folder / "best_model.pth")
        await registry.poll()
        assert (precision_of(registry), registry.get(None).version) == ("int8", version)
        loaded = registry.get(None)
        twin_path(folder / "best_model.pth").touch()
        await registry.poll()
        assert registry.get(None) is loaded
        twin_path(folder / "best_model.pth").unlink()
        await registry.poll()
        assert precision_of(registry) == "fp32"
        assert registry.refused == {}

    run(folder, work)


def test_between_new_twin_and_new_weights_the_old_pair_serves(folder: Path) -> None:
    weights = folder / "best_model.pth"
    write_small_twin(weights)
    other = folder / ".next.pth"
    write(other, 5)
    new = write_small_twin(other)

    async def work(registry: Registry) -> None:
        old = registry.get(None)
        twin_path(other).replace(twin_path(weights))
        await registry.poll()
        assert registry.get(None) is old
        assert "was made for version" in registry.refused["best_model.int8.json"]
        assert str(folder) not in registry.refused["best_model.int8.json"]
        other.replace(weights)
        await registry.poll()
        assert (precision_of(registry), registry.get(None).version) == ("int8", new.checkpoint)
        assert registry.refused == {}

    run(folder, work)


def test_weights_whose_twin_is_another_ones_serve_in_float32_until_theirs_comes(folder: Path) -> None:
    weights = folder / "best_model.pth"
    write_small_twin(weights)

    async def work(registry: Registry) -> None:
        assert precision_of(registry) == "int8"
        version = write(weights, 5)
        await registry.poll()
        assert (precision_of(registry), registry.get(None).version) == ("fp32", version)
        assert "was made for version" in registry.refused["best_model.int8.json"]
        write_small_twin(weights)
        await registry.poll()
        assert precision_of(registry) == "int8"
        assert registry.refused == {}

    run(folder, work)


def test_a_damaged_twin_is_named_and_not_used(folder: Path) -> None:
    weights = folder / "best_model.pth"
    write_small_twin(weights)
    data = twin_path(weights).read_bytes()
    twin_path(weights).write_bytes(data[: len(data) // 2])

    async def work(registry: Registry) -> None:
        assert precision_of(registry) == "fp32"
        assert "is no int8 twin" in registry.refused["best_model.int8.json"]

    run(folder, work)


def test_what_another_process_serves_is_adopted_from_the_file_and_nothing_else(folder: Path) -> None:
    weights = folder / "best_model.pth"

    async def work(registry: Registry) -> None:
        old = registry.get(None)
        await registry.adopt("best_model", old.version)
        assert registry.last_reload is not None
        assert (registry.last_reload.ok, registry.last_reload.version) == (True, old.version)
        assert registry.get(None) is old  # the same bytes: nothing to do
        version = write(weights, 1)
        await registry.adopt("best_model", version)
        assert registry.get(None).version == version
        write_small_twin(weights)
        await registry.adopt("best_model", version)
        assert registry.get(None).segmenter.twin is not None
        with pytest.raises(WeightsRefusedError, match="by now"):
            await registry.adopt("best_model", "0" * 64)
        with pytest.raises(WeightsRefusedError, match="gone"):
            await registry.adopt("another", version)
        weights.write_bytes(b"junk")
        with pytest.raises(WeightsRefusedError, match="no readable file of weights"):
            await registry.adopt("best_model", "0" * 64)

    run(folder, work)


def test_a_candidate_that_hangs_is_refused_in_time_and_holds_up_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    honest = Segmenter.warm_up

    def warm_up(self: Segmenter) -> None:
        if self.version == hanging:
            go_on.wait()
        honest(self)

    monkeypatch.setattr(Segmenter, "warm_up", warm_up)
    hanging = ""

    async def work(registry: Registry) -> None:
        nonlocal hanging
        old = registry.get(None).version
        hanging = write(folder / "best_model.pth", 1)
        registry._patience._deadline_s = 2
        with pytest.raises(WeightsRefusedError, match=r"could not be loaded: it was not done after 2 s"):
            await registry.reload("best_model")
        registry._patience._deadline_s = 300  # the machine may be busy
        assert registry.get(None).version == old
        assert "was not done" in registry.refused["best_model"]
        await registry.poll()  # the same file is not tried again
        good = write(folder / "best_model.pth", 2)
        assert (await registry.reload("best_model")).version == good
        assert registry.refused == {}
        go_on.set()  # and what comes late is dropped
        await asyncio.sleep(0.1)
        assert registry.get(None).version == good

    try:
        run(folder, work, load_deadline_s=300)
    finally:
        go_on.set()


def test_what_is_no_file_is_refused_at_once_and_the_rest_of_the_folder_is_loaded(folder: Path) -> None:
    async def work(registry: Registry) -> None:
        os.mkfifo(folder / "pipe.pth")  # to read it would take for ever
        (folder / "zeros.pth").symlink_to("/dev/zero")  # and this all memory
        (folder / "loop.pth").symlink_to(folder / "loop.pth")
        (folder / "gone.pth").symlink_to(folder / "nowhere")
        (folder / "folder.pth").mkdir()
        write(folder / "good.pth", 1)
        await registry.poll()
        assert [model.name for model in registry.models] == ["best_model", "good"]
        assert registry.folder_error is None
        assert {name: text.split(": ")[1] for name, text in registry.refused.items()} == {
            "pipe.pth": "it is no ordinary file",
            "zeros.pth": "it is no ordinary file",
            "folder.pth": "it is no ordinary file",
            "loop.pth": "Too many levels of symbolic links",
            "gone.pth": "it is a link to nothing that is there",
        }
        (folder / "best_model.pth").unlink()
        os.mkfifo(folder / "best_model.pth")
        with pytest.raises(WeightsRefusedError, match="no ordinary file"):
            await registry.reload("best_model")
        await registry.poll()
        assert registry.default is not None  # what serves keeps serving

    run(folder, work)
    with pytest.raises(WeightsError, match=r"best_model\.pth cannot be used: it is no ordinary file"):
        run(folder, work)


def test_what_cannot_be_looked_at_just_now_keeps_serving(folder: Path) -> None:
    async def work(registry: Registry) -> None:
        write(folder / "other.pth", 1)
        await registry.poll()
        (folder / "other.pth").unlink()
        (folder / "other.pth").symlink_to(folder / "other.pth")  # an error, as of a share that is away
        await registry.poll()
        assert [model.name for model in registry.models] == ["best_model", "other"]
        assert "symbolic links" in registry.refused["other.pth"]
        (folder / "other.pth").unlink()
        await registry.poll()
        assert [model.name for model in registry.models] == ["best_model"]

    run(folder, work)


def test_a_folder_in_the_place_of_a_twin_costs_the_twin_alone(folder: Path) -> None:
    async def work(registry: Registry) -> None:
        assert registry.default is not None
        assert list(registry.refused) == [twin_path(folder / "best_model.pth").name]

    twin_path(folder / "best_model.pth").mkdir()
    run(folder, work)


def test_a_twin_that_is_put_right_again_is_no_longer_refused(folder: Path) -> None:
    twin = twin_path(folder / "best_model.pth")
    write_small_twin(folder / "best_model.pth")
    whole = twin.read_bytes()

    async def work(registry: Registry) -> None:
        twin.write_text("no twin")
        await registry.poll()
        assert list(registry.refused) == [twin.name]
        twin.write_bytes(whole)
        await registry.poll()
        assert registry.refused == {}
        assert registry.get(None).segmenter.twin is not None

    run(folder, work)
