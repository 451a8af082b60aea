"""What the shipped weights say of pictures without cells, and of drawn ones: as a user runs them on a CPU."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import skimage.data

from model.metrics import dice
from model.segmenter import Segmenter, load_segmenter
from training.synthesize import draw_cells

WEIGHTS = Path(__file__).resolve().parents[3] / "weights"
SIDE = 256
# of the pictures below 3 % at most are taken for cells by either (bench/robustness.py)
MOST_OF_OTHER_THINGS = 0.05


@pytest.fixture(scope="module", params=["best_model", "fast"])
def segmenter(request: pytest.FixtureRequest) -> Segmenter:
    segmenter = load_segmenter(WEIGHTS / f"{request.param}.pth", device="cpu")
    assert segmenter.twin_error is None
    return segmenter


@pytest.mark.parametrize("grey", [0, 7, 128, 255])
def test_a_constant_picture_holds_no_cell(segmenter: Segmenter, grey: int) -> None:
    answer = segmenter.segment(np.full((SIDE, SIDE), grey, np.uint8))
    assert not answer.mask().any()
    assert answer.labels().max() == 0


def noise(kind: str) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    generator = np.random.default_rng(0)
    if kind == "of a camera":
        return generator.normal(100, 10, (SIDE, SIDE)).clip(0, 255).astype(np.uint8)
    if kind == "of few photons":
        return generator.poisson(3, (SIDE, SIDE)).astype(np.uint16)
    return generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["of a camera", "of few photons", "in all colours"])
def test_pure_noise_holds_no_cell(segmenter: Segmenter, kind: str) -> None:
    assert not segmenter.segment(noise(kind)).mask().any()


@pytest.mark.parametrize("name", ["brick", "grass", "page", "text", "moon", "checkerboard"])
def test_little_of_a_picture_of_other_things_is_taken_for_cells(segmenter: Segmenter, name: str) -> None:
    picture = getattr(skimage.data, name)()
    assert segmenter.segment(picture).mask().mean() < MOST_OF_OTHER_THINGS


@pytest.mark.parametrize("seed", [0, 3])
def test_drawn_cells_are_found(segmenter: Segmenter, seed: int) -> None:
    """Drawn as `synthesize` does; what would answer "no cell" to everything passes all of the above."""
    image, labels = draw_cells(SIDE, np.random.default_rng(seed))
    answer = segmenter.segment(image)
    assert dice(labels > 0, answer.mask()) > 0.9
    assert abs(int(answer.labels().max()) - int(labels.max())) <= 0.25 * labels.max()
