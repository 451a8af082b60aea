"""Layouts, pairing, and what is refused with the files' names."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from training.data import Pair, find_pairs, part_touching, split_pairs
from training.errors import DataError


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


def grey(height: int = 20, width: int = 30) -> np.ndarray:
    return np.arange(height * width, dtype=np.uint8).reshape(height, width)


def binary(height: int = 20, width: int = 30) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[3:9, 4:12] = 255
    return mask


def test_image_and_label_folders_are_paired_by_stem_whatever_the_suffix(tmp_path: Path) -> None:
    write(tmp_path / "image" / "b.png", grey())
    write(tmp_path / "image" / "a.tif", grey())
    write(tmp_path / "label" / "a.png", binary())
    write(tmp_path / "label" / "b.tif", binary())

    pairs = find_pairs(tmp_path)

    assert [(pair.name, pair.kind) for pair in pairs] == [("a", "mask"), ("b", "mask")]
    image, truth = pairs[0].read()
    assert np.array_equal(image, grey())
    assert np.array_equal(truth, binary() > 0)


def test_instances_keep_their_numbers_in_8_and_16_bits(tmp_path: Path) -> None:
    labels = np.zeros((20, 30), np.uint16)
    labels[2:5, 2:5], labels[10:14, 20:25] = 7, 40000
    write(tmp_path / "image" / "a.png", np.dstack([grey()] * 3))
    write(tmp_path / "instances" / "a.png", labels)

    image, truth = find_pairs(tmp_path)[0].read()

    assert image.shape == (20, 30, 3)
    assert truth.dtype == np.int32
    assert np.array_equal(truth, labels)


def test_sixteen_bit_rgba_images_are_read(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (20, 30, 4), dtype=np.uint16)
    write(tmp_path / "image" / "a.png", pixels)
    write(tmp_path / "label" / "a.png", binary())

    image, _ = find_pairs(tmp_path)[0].read()

    assert image.dtype == np.uint16
    assert np.array_equal(image[:, :, :3], pixels[:, :, 2::-1])


def test_the_isbi_pair_of_volumes_gives_a_pair_a_page(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).integers(0, 256, (3, 20, 30), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "train-volume.tif", volume, photometric="minisblack")
    tifffile.imwrite(tmp_path / "train-labels.tif", np.stack([binary()] * 3), photometric="minisblack")

    pairs = find_pairs(tmp_path)

    assert [pair.name for pair in pairs] == ["000", "001", "002"]
    assert np.array_equal(pairs[2].read()[0], volume[2])


def test_the_dsb_layout_gathers_a_mask_a_cell(tmp_path: Path) -> None:
    first, second = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    first[2:5, 2:5], second[5:9, 2:5] = 255, 255
    write(tmp_path / "abc" / "images" / "abc.png", grey())
    write(tmp_path / "abc" / "masks" / "m1.png", first)
    write(tmp_path / "abc" / "masks" / "m2.png", second)

    (pair,) = find_pairs(tmp_path)
    _, truth = pair.read()

    assert pair.name == "abc"
    assert np.array_equal(truth, (first > 0) * 1 + (second > 0) * 2)


@pytest.mark.parametrize(("lonely", "missing"), [("image", "label"), ("label", "image")])
def test_a_missing_partner_is_an_error_that_names_both(tmp_path: Path, lonely: str, missing: str) -> None:
    for folder in ("image", "label"):
        write(tmp_path / folder / "a.png", binary())
    write(tmp_path / lonely / "b.png", binary())

    with pytest.raises(DataError) as caught:
        find_pairs(tmp_path)

    assert str(tmp_path / lonely / "b.png") in str(caught.value)
    assert str(tmp_path / missing / "b.*") in str(caught.value)


def test_two_files_of_one_stem_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "image" / "a.png", grey())
    write(tmp_path / "image" / "a.tif", grey())
    write(tmp_path / "label" / "a.png", binary())

    with pytest.raises(DataError, match=r"a\.png and .*a\.tif have one stem"):
        find_pairs(tmp_path)


def test_a_size_mismatch_names_the_files_and_both_sizes(tmp_path: Path) -> None:
    image = write(tmp_path / "image" / "a.png", grey(20, 30))
    label = write(tmp_path / "label" / "a.png", binary(20, 31))

    with pytest.raises(DataError) as caught:
        find_pairs(tmp_path)[0].read()

    assert all(text in str(caught.value) for text in (str(image), "30 x 20", str(label), "31 x 20"))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    (tmp_path / "label").mkdir()
    with pytest.raises(DataError, match="image holds no images"):
        find_pairs(tmp_path)


def test_a_folder_of_another_layout_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match=r"looked for image/ with label/"):
        find_pairs(tmp_path)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "image" / "a.png", grey())
    write(tmp_path / "label" / "a.png", binary())
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=str(path)):
        find_pairs(tmp_path)[0].read()


def test_a_label_image_in_the_place_of_a_binary_mask_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "image" / "a.png", grey())
    write(tmp_path / "label" / "a.png", grey())
    with pytest.raises(DataError, match=r"belong into instances/"):
        find_pairs(tmp_path)[0].read()


def test_touching_cells_are_parted_and_lone_ones_keep_their_pixels() -> None:
    labels = np.zeros((8, 12), np.int32)
    labels[1:7, 1:5], labels[1:7, 5:9] = 1, 2
    labels[2:5, 10:12] = 3

    foreground = part_touching(labels)

    assert not foreground[1:7, 4:6].any()
    assert foreground[1:7, 1:4].all()
    assert foreground[1:7, 6:9].all()
    assert np.array_equal(foreground[:, 10:], labels[:, 10:] == 3)


def pairs_named(*names: str) -> list[Pair]:
    return [Pair(name, Path(name), (Path(name),), "mask") for name in names]


def test_a_split_shares_no_image_loses_none_and_is_the_same_every_time() -> None:
    pairs = pairs_named(*(f"{index:03d}" for index in range(50)))
    train, validation = split_pairs(pairs, fraction=0.1, seed=1)

    assert len(validation) == 5
    assert sorted([*train, *validation], key=lambda pair: pair.name) == pairs
    assert split_pairs(pairs, fraction=0.1, seed=1) == (train, validation)
    assert split_pairs(pairs, fraction=0.1, seed=2)[1] != validation


def test_a_split_by_names_takes_these_and_refuses_unknown_ones() -> None:
    train, validation = split_pairs(pairs_named("a", "b", "c"), names=["b"])
    assert [pair.name for pair in train] == ["a", "c"]
    assert [pair.name for pair in validation] == ["b"]
    with pytest.raises(DataError, match="names x"):
        split_pairs(pairs_named("a", "b"), names=["x"])


def test_a_split_that_leaves_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(DataError, match="0 for training"):
        split_pairs(pairs_named("a"), fraction=0.5)


def test_label_numbers_may_have_gaps_and_be_large(tmp_path: Path) -> None:
    labels = np.zeros((8, 9), np.uint32)
    labels[1, 1], labels[3, 3], labels[5, 5] = 3_000_000_000, 20_000_001, 20_000_000
    for folder in ("image", "instances"):
        (tmp_path / folder).mkdir()
    tifffile.imwrite(tmp_path / "instances" / "a.tif", labels)
    tifffile.imwrite(tmp_path / "image" / "a.tif", np.zeros((8, 9), np.uint8))
    [pair] = find_pairs(tmp_path)
    found = pair.read()[1]
    assert found.dtype == np.int32
    assert (found[1, 1], found[3, 3], found[5, 5], found.max(), found[0, 0]) == (3, 2, 1, 3, 0)


def test_labels_may_be_whole_numbers_as_floats_and_no_others(tmp_path: Path) -> None:
    labels = np.zeros((8, 9), np.float32)
    labels[1, 1], labels[3, 3], labels[5, 5] = 70_000, 2, 1
    for folder in ("image", "instances"):
        (tmp_path / folder).mkdir()
    tifffile.imwrite(tmp_path / "image" / "a.tif", np.zeros((8, 9), np.uint8))
    tifffile.imwrite(tmp_path / "instances" / "a.tif", labels)
    [pair] = find_pairs(tmp_path)
    found = pair.read()[1]
    assert found.dtype == np.int32
    assert (found[1, 1], found[3, 3], found[5, 5], found.max()) == (3, 2, 1, 3)
    for wrong in (0.5, -1.0, np.nan, np.inf):
        labels[0, 0] = wrong
        tifffile.imwrite(tmp_path / "instances" / "a.tif", labels)
        with pytest.raises(DataError, match="labels are whole numbers from 0 on"):
            pair.read()


def test_masks_without_their_image_and_two_kinds_of_truth_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a" / "masks").mkdir(parents=True)
    with pytest.raises(DataError, match="masks has no image"):
        find_pairs(tmp_path)
    other = tmp_path / "other"
    for name in ("image", "label", "instances"):
        (other / name).mkdir(parents=True)
    with pytest.raises(DataError, match="label/ and instances/"):
        find_pairs(other)
