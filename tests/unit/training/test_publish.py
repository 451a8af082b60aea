"""The gate: better goes in, worse stays out, and what cannot serve never does."""

import fcntl
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.checkpoint import Architecture, ModelConfig, read_checkpoint, write_checkpoint
from model.errors import WeightsError
from model.images import encode_png
from training.__main__ import main
from training.data import find_pairs
from training.dataset import image_digest
from training.errors import DataError, RefusedError, RunError
from training.evaluate import Scores, evaluate
from training.publish import publish

CONFIG = ModelConfig(architecture=Architecture(width=4, align_corners=False), tile_px=(128,))


def weights(path: Path, bias: float, *, card: dict[str, object] | None = None) -> Path:
    """A network whose cell probability follows a bias: -30 finds next to nothing, 30 calls everything a cell."""
    torch.manual_seed(0)
    state = CONFIG.architecture.build().state_dict()
    state["outc.conv.bias"].fill_(bias)
    write_checkpoint(path, state, CONFIG, card or {})
    return path


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    return weights(tmp_path / "everything.pth", 30)


@pytest.fixture
def nothing(tmp_path: Path) -> Path:
    return weights(tmp_path / "nothing.pth", -30)


def test_a_better_candidate_replaces_the_weights_in_service(
    cells: Path, tmp_path: Path, everything: Path, nothing: Path
) -> None:
    to = tmp_path / "weights" / "best_model.pth"
    first = publish(nothing, find_pairs(cells), to=to, int8=False, quiet=True)
    assert first.current is None
    report = publish(everything, find_pairs(cells), to=to, int8=False, quiet=True)
    assert report.current is not None
    assert report.candidate.overall > report.current.overall
    assert to.read_bytes() == everything.read_bytes()
    assert report.version == read_checkpoint(everything).version
    assert not [path for path in to.parent.iterdir() if path.suffix == ".part"]


def test_a_worse_candidate_is_refused_with_both_scores_and_changes_nothing(
    cells: Path, tmp_path: Path, everything: Path, nothing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "best_model.pth"
    publish(everything, find_pairs(cells), to=to, int8=False, quiet=True)
    with pytest.raises(RefusedError, match=r"Dice 0\.\d+ .* on 10 images, the weights in service: 0\.\d+"):
        publish(nothing, find_pairs(cells), to=to, int8=False, quiet=True)
    assert main(["publish", str(nothing), str(cells), "--to", str(to), "--no-int8", "--quiet"]) == 1
    assert "refused" in capsys.readouterr().err
    assert to.read_bytes() == everything.read_bytes()


def test_a_candidate_that_no_longer_parts_touching_cells_is_worse(level_weights: Path, tmp_path: Path) -> None:
    current = read_checkpoint(level_weights)
    parting = tmp_path / "best_model.pth"
    write_checkpoint(parting, current.state, current.config.model_copy(update={"core_threshold": 0.8}), {}, half=True)
    image, labels = np.full((64, 96), 20, np.uint8), np.zeros((64, 96), np.uint8)
    image[8:24, 10:80], image[8:24, 44:46] = 230, 140  # two cells, and a paler line where they touch
    labels[8:24, 10:45], labels[8:24, 45:80] = 1, 2
    for folder, pixels in (("image", image), ("instances", labels)):
        (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "data" / folder / "a.png").write_bytes(encode_png(pixels))
    with pytest.raises(RefusedError, match=r"levels.pth: 0\.5\d+ \(mean of Dice 1\.0000 and the cells' AP 0\.\d+"):
        publish(level_weights, find_pairs(tmp_path / "data"), to=parting, int8=False, quiet=True)
    assert read_checkpoint(parting).config.core_threshold == 0.8


def test_force_and_tolerance_let_a_worse_candidate_in(
    cells: Path, tmp_path: Path, everything: Path, nothing: Path
) -> None:
    to = tmp_path / "best_model.pth"
    for option in ({"force": True}, {"tolerance": 1.0}):
        publish(everything, find_pairs(cells), to=to, force=True, int8=False, quiet=True)
        publish(nothing, find_pairs(cells), to=to, int8=False, quiet=True, **option)
        assert to.read_bytes() == nothing.read_bytes()


def test_a_candidate_that_cannot_serve_is_never_published_not_even_by_force(
    cells: Path, tmp_path: Path, everything: Path
) -> None:
    to = tmp_path / "best_model.pth"
    publish(everything, find_pairs(cells), to=to, int8=False, quiet=True)
    broken, deaf = tmp_path / "broken.pth", tmp_path / "deaf.pth"
    broken.write_bytes(everything.read_bytes()[:-100])
    state = {name: torch.zeros_like(value) for name, value in read_checkpoint(everything).state.items()}
    write_checkpoint(deaf, state, CONFIG, {})
    for bad in (broken, deaf):
        with pytest.raises(WeightsError):
            publish(bad, find_pairs(cells), to=to, force=True, int8=False, quiet=True)
    assert to.read_bytes() == everything.read_bytes()


def test_unreadable_weights_in_service_are_replaced(cells: Path, tmp_path: Path, nothing: Path) -> None:
    to = tmp_path / "best_model.pth"
    to.write_bytes(b"half a fi")
    assert publish(nothing, find_pairs(cells), to=to, int8=False, quiet=True).current is None
    assert to.read_bytes() == nothing.read_bytes()


def test_images_that_the_candidate_was_trained_on_do_not_judge_it(cells: Path, tmp_path: Path) -> None:
    names = [pair.name for pair in find_pairs(cells)]
    some = weights(tmp_path / "some.pth", 0, card={"split": {"train": names[:7]}})
    assert publish(some, find_pairs(cells), to=tmp_path / "b.pth", int8=False, quiet=True).n_images == 3
    every = weights(tmp_path / "every.pth", 0, card={"split": {"train": names}})
    with pytest.raises(DataError, match="trained on all 10"):
        publish(every, find_pairs(cells), to=tmp_path / "b.pth", int8=False, quiet=True)


def test_the_report_tells_how_many_images_chose_epoch_or_threshold(
    cells: Path, tmp_path: Path, everything: Path
) -> None:
    names = [pair.name for pair in find_pairs(cells)]
    assert "chose its" not in str(publish(everything, find_pairs(cells), to=tmp_path / "b.pth", int8=False, quiet=True))
    card: dict[str, object] = {
        "split": {"train": names[:4], "validation": names[4:6]},
        "tuned": {"images": [*names[5:7], "another"]},
    }
    report = publish(
        weights(tmp_path / "tuned.pth", 30, card=card), find_pairs(cells), to=tmp_path / "b.pth", int8=False, quiet=True
    )
    assert (report.n_images, report.n_chosen) == (6, 3)
    assert "3 of the 6 chose its epoch or threshold, which flatters it" in str(report)


def test_images_are_known_by_their_pixels_not_by_their_names(cells: Path, tmp_path: Path) -> None:
    pairs = find_pairs(cells)
    card: dict[str, object] = {
        "split": {"train": [pair.name for pair in pairs]},
        "seen": [image_digest(pairs[0].read()[0])],
    }
    some = weights(tmp_path / "some.pth", 0, card=card)
    report = publish(some, pairs, to=tmp_path / "b.pth", int8=False, quiet=True)
    assert (report.n_images, report.n_left_out) == (9, 1)
    assert "1 images that one of them was trained on were left out" in str(report)


def test_nor_do_those_that_the_weights_in_service_were_trained_on_where_others_are_left(
    cells: Path, tmp_path: Path
) -> None:
    pairs = find_pairs(cells)
    digests = [image_digest(pair.read()[0]) for pair in pairs]
    to = tmp_path / "b.pth"
    weights(to, 0, card={"seen": digests[:4]})
    candidate = weights(tmp_path / "c.pth", 0, card={"seen": digests[3:6]})
    assert publish(candidate, pairs, to=to, int8=False, quiet=True).n_images == 4
    weights(to, 0, card={"seen": digests})
    assert publish(candidate, pairs, to=to, int8=False, quiet=True).n_images == 7


def test_a_candidate_that_changes_while_it_is_compared_is_not_published(
    cells: Path, tmp_path: Path, everything: Path, nothing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = tmp_path / "b.pth"

    def evaluate_and_replace(*arguments: Any, **options: Any) -> Scores:
        scores = evaluate(*arguments, **options)
        everything.write_bytes(nothing.read_bytes())
        return scores

    monkeypatch.setattr("training.publish.evaluate", evaluate_and_replace)
    with pytest.raises(RunError, match="was changed while"):
        publish(everything, find_pairs(cells), to=to, int8=False, quiet=True)
    assert not to.exists()


def test_a_folder_to_publish_to_is_refused(cells: Path, tmp_path: Path, nothing: Path) -> None:
    with pytest.raises(RunError, match="is a folder"):
        publish(nothing, find_pairs(cells), to=tmp_path, int8=False, quiet=True)


def test_two_publishers_do_not_race(cells: Path, tmp_path: Path, nothing: Path) -> None:
    to = tmp_path / "best_model.pth"
    with (tmp_path / ".best_model.pth.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another process publishes"):
            publish(nothing, find_pairs(cells), to=to, int8=False, quiet=True)
    assert not to.exists()


@pytest.mark.parametrize("tolerance", [float("nan"), -0.1, 2.0])
def test_a_tolerance_that_switches_the_gate_off_is_refused(
    cells: Path, tmp_path: Path, nothing: Path, tolerance: float
) -> None:
    with pytest.raises(DataError, match="tolerance"):
        publish(nothing, find_pairs(cells), to=tmp_path / "b.pth", tolerance=tolerance, int8=False, quiet=True)


def test_a_list_of_other_names_is_refused_however_long(
    cells: Path, tmp_path: Path, nothing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("".join(f"s_1.5um_{index}\n" for index in range(20)))
    assert main(["evaluate", str(nothing), str(cells), "--only", str(names), "--quiet"]) == 2
    assert "s_1.5um_0, which the data does not hold" in capsys.readouterr().err
