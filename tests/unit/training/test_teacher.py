"""Learning from a larger network's answers: the targets by hand, what is learnt, and what is refused."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from model.checkpoint import Architecture, Checkpoint, ModelConfig, Output, read_checkpoint
from model.images import encode_png
from training.config import Recipe
from training.data import find_pairs, split_pairs
from training.dataset import CropDataset, PairCache
from training.errors import RunError
from training.teacher import Teacher
from training.train import fit, model_config

OUTPUTS: tuple[Output, ...] = ("cell", "border", "distance")


def make_teacher(
    outputs: Sequence[Output] = OUTPUTS,
    *,
    says: Sequence[float] | None = None,
    seen: str = "0" * 16,
    n_channels: int = 3,
) -> Checkpoint:
    """Random weights; or such as give the same logits everywhere."""
    torch.manual_seed(5)
    architecture = Architecture(n_channels=n_channels, n_classes=len(outputs), width=8, align_corners=False)
    state = architecture.build().state_dict()
    if says is not None:
        state["outc.conv.weight"].zero_()
        state["outc.conv.bias"].copy_(torch.tensor(says))
    return Checkpoint(state, ModelConfig(architecture=architecture, outputs=tuple(outputs)), {"seen": [seen]}, "t" * 64)


def student(outputs: Sequence[Output] = OUTPUTS) -> ModelConfig:
    return ModelConfig(
        architecture=Architecture(n_channels=3, n_classes=len(outputs), width=4, align_corners=False),
        outputs=tuple(outputs),
    )


def learn(
    data: Path, folder: Path, recipe: Recipe, teacher: Checkpoint | None, *, max_steps: int | None = None
) -> Checkpoint | None:
    train, validation = split_pairs(find_pairs(data), fraction=0.2, seed=0)
    done = fit(
        train, validation, recipe, out=folder / "out.pth", run_folder=folder / "run", device="cpu", teacher=teacher,
        max_steps=max_steps, quiet=True,
    )  # fmt: skip
    return read_checkpoint(folder / "out.pth") if done.finished else None


def test_the_targets_lie_between_the_truth_and_what_the_teacher_says() -> None:
    teacher = Teacher(make_teacher(says=(0.0, 2.0, -1.0)), student(("distance", "cell")), Fabric(accelerator="cpu"))
    truth = torch.stack([torch.full((16, 16), 0.2), torch.ones(16, 16)])[None]
    softened = teacher.soften(torch.rand(1, 3, 16, 16), truth, 0.75)
    assert torch.allclose(softened[0, 0], torch.tensor(0.25 * 0.2 + 0.75 / (1 + torch.e)))
    assert torch.allclose(softened[0, 1], torch.tensor(0.25 * 1 + 0.75 * 0.5))


def test_with_no_share_of_the_teacher_nothing_changes(cells: Path, tmp_path: Path, tiny_recipe: Recipe) -> None:
    recipe = replace(tiny_recipe, epochs=1, teacher_weight=0.0)
    alone = learn(cells, tmp_path / "alone", recipe, None)
    taught = learn(cells, tmp_path / "taught", recipe, make_teacher())
    assert alone is not None
    assert taught is not None
    assert all(torch.equal(alone.state[name], taught.state[name]) for name in alone.state)


def test_with_the_teacher_alone_the_truth_does_not_matter(cells: Path, tmp_path: Path, tiny_recipe: Recipe) -> None:
    wrong = tmp_path / "wrong"
    (wrong / "image").mkdir(parents=True)
    (wrong / "instances").mkdir()
    for pair in find_pairs(cells):
        image, truth = pair.read()
        (wrong / "image" / f"{pair.name}.png").write_bytes(encode_png(image))
        (wrong / "instances" / f"{pair.name}.png").write_bytes(encode_png(truth.T.astype(np.uint16)))
    # a part that is taken alone is chosen by the truth
    recipe = replace(tiny_recipe, epochs=1, teacher_weight=1.0, alone_prob=0.0)
    right, taught = (
        learn(data, tmp_path / name, recipe, make_teacher()) for name, data in (("a", cells), ("b", wrong))
    )
    assert right is not None
    assert taught is not None
    assert all(torch.equal(right.state[name], taught.state[name]) for name in right.state)
    other = learn(cells, tmp_path / "c", replace(recipe, teacher_weight=0.9), make_teacher())
    assert other is not None
    assert not torch.equal(other.state["outc.conv.weight"], right.state["outc.conv.weight"])


@pytest.mark.parametrize("n_channels", [1, 3])
def test_the_teacher_sees_the_crops_as_they_were(
    cells: Path, tmp_path: Path, tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch, n_channels: int
) -> None:
    recipe = replace(tiny_recipe, epochs=1, n_channels=n_channels, intensity_prob=1.0, invert_prob=0.5)
    given: list[Tensor] = []
    real = Teacher.soften

    def note(self: Teacher, images: Tensor, targets: Tensor, share: float) -> Tensor:
        given.append(images.clone())
        return real(self, images, targets, share)

    monkeypatch.setattr(Teacher, "soften", note)
    learn(cells, tmp_path, recipe, make_teacher(n_channels=n_channels), max_steps=1)
    train, _ = split_pairs(find_pairs(cells), fraction=0.2, seed=0)
    cache = PairCache(train, quiet=True)
    dataset = CropDataset(cache, recipe, model_config(recipe, train, cache.largest_side), plain=True)
    both = torch.stack([dataset[0, position][0] for position in range(recipe.batch_size)])
    assert torch.equal(given[0], both[:, n_channels:])
    assert not torch.allclose(both[:, :n_channels], both[:, n_channels:], atol=0.01)


def test_the_card_names_the_teacher_and_what_it_had_seen(cells: Path, tmp_path: Path, tiny_recipe: Recipe) -> None:
    taught = learn(cells, tmp_path, replace(tiny_recipe, epochs=1), make_teacher(seen="ab" * 8))
    assert taught is not None
    assert taught.card["teacher"] == "t" * 64
    assert "ab" * 8 in taught.card["seen"]
    assert len(taught.card["seen"]) == 1 + 8


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (
            make_teacher(("cell", "border")),
            "the teacher says cell, border as sigmoid; .* is to say cell, border, distance",
        ),
        (
            replace(make_teacher(), config=make_teacher().config.model_copy(update={"normalisation": "unit"})),
            "the teacher sees 3 channels, normalised as unit; the network to train 3, as percentile",
        ),
        (
            replace(make_teacher(), config=make_teacher().config.model_copy(update={"activation": "softmax"})),
            "the teacher says cell, border, distance as softmax",
        ),
    ],
)
def test_a_teacher_of_another_kind_is_refused(teacher: Checkpoint, message: str) -> None:
    with pytest.raises(RunError, match=message):
        Teacher(teacher, student(), Fabric(accelerator="cpu"))


def test_a_run_does_not_go_on_with_another_teacher(cells: Path, tmp_path: Path, tiny_recipe: Recipe) -> None:
    assert learn(cells, tmp_path, tiny_recipe, make_teacher(), max_steps=1) is None
    with pytest.raises(RunError, match="--teacher"):
        learn(cells, tmp_path, tiny_recipe, None)
    assert learn(cells, tmp_path, tiny_recipe, make_teacher()) is not None
