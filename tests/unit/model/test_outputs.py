"""Outlines, regions and tables against the label image that they were made of."""

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import roifile
import shapely
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image as PillowImage
from scipy import ndimage
from shapely.geometry import shape

from model.errors import ImageError
from model.outputs import SUFFIXES, Output, encode_geojson, encode_output, encode_rois, encode_table
from model.postprocess import Maps
from model.segmenter import Segmentation
from model.shapes import trace_cells
from model.source import PixelSize
from model.types import Labels

PROVENANCE = {"Software": "Maskwell", "X-Model-Version": "abc", "X-Threshold": "0.5"}


def rasterise(geometry: shapely.Geometry, size: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """The pixels whose middle lies in a geometry; shapely's own arithmetic."""
    ys, xs = np.mgrid[: size[0], : size[1]] + 0.5
    inside: npt.NDArray[np.bool_] = shapely.contains_xy(geometry, xs, ys)
    return inside


def from_geojson(data: bytes, size: tuple[int, ...]) -> Labels:
    labels = np.zeros(size, np.int32)
    for feature in json.loads(data)["features"]:
        geometry = shape(feature["geometry"])
        assert geometry.is_valid, shapely.is_valid_reason(geometry)
        inside = rasterise(geometry, size)
        assert not labels[inside].any()
        labels[inside] = int(feature["properties"]["name"])
    return labels


def from_rois(data: bytes, size: tuple[int, ...], folder: Path) -> Labels:
    """Read back by roifile; the odd winding of all rings, as Java's paths are filled."""
    path = folder / "set.zip"
    path.write_bytes(data)
    labels = np.zeros(size, np.int32)
    rois = roifile.roiread(path)
    for roi in rois if isinstance(rois, list) else [rois]:
        rings = roi.coordinates(multi=True)
        inside = np.zeros(size, np.bool_)
        for ring in rings:
            inside ^= rasterise(shapely.Polygon(ring), size)
        ys, xs = np.nonzero(inside)
        assert (roi.top, roi.left, roi.bottom, roi.right) == (ys.min(), xs.min(), ys.max() + 1, xs.max() + 1)
        labels[inside] = int(roi.name)
    return labels


def drawn() -> Labels:
    """A ring with a cell in its hole, a single pixel, cells at all edges, a hole that is open only at a corner."""
    labels = np.zeros((24, 30), np.int32)
    labels[2:12, 2:12] = 1
    labels[4:10, 4:10] = 0
    labels[6:8, 6:8] = 2
    labels[15, 15] = 3
    labels[0, 20:30] = 4
    labels[20:24, 0:5] = 5
    labels[10:24, 28:30] = 6
    labels[14:18, 18:22] = 7
    labels[15, 19] = labels[16, 20] = labels[17, 21] = 0
    return labels


def test_each_kind_of_outline_rasterises_to_the_very_labels(tmp_path: Path) -> None:
    labels = drawn()
    outlines = trace_cells(labels)
    np.testing.assert_array_equal(from_geojson(encode_geojson(outlines), labels.shape), labels)
    np.testing.assert_array_equal(from_rois(encode_rois(outlines, labels.shape), labels.shape, tmp_path), labels)


@settings(max_examples=150, deadline=None)
@given(hnp.arrays(np.int8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 2)))
def test_any_labels_come_back_from_their_outlines(
    tmp_path_factory: pytest.TempPathFactory, kinds: npt.NDArray[np.int8]
) -> None:
    labels = np.zeros(kinds.shape, np.int32)
    for kind in (1, 2):
        pieces, _ = ndimage.label(kinds == kind)
        labels = np.where(pieces > 0, pieces + labels.max(), labels).astype(np.int32)
    outlines = trace_cells(labels)
    np.testing.assert_array_equal(from_geojson(encode_geojson(outlines), labels.shape), labels)
    rois = encode_rois(outlines, labels.shape)
    if outlines:
        np.testing.assert_array_equal(from_rois(rois, labels.shape, tmp_path_factory.mktemp("rois")), labels)


def test_a_square_has_four_corners_at_pixel_corners_clockwise_on_the_screen() -> None:
    labels = np.zeros((10, 10), np.int32)
    labels[2:5, 3:7] = 9
    [outline] = trace_cells(labels)
    assert outline.label == 9
    [[ring]] = outline.polygons
    start = ring.tolist().index([3, 2])
    assert np.roll(ring, -start, axis=0).tolist() == [[3, 2], [7, 2], [7, 5], [3, 5]]


def test_rois_far_out_keep_their_place_and_those_out_of_reach_are_refused(tmp_path: Path) -> None:
    labels = np.zeros((2, 60_000), np.int32)
    labels[:, 59_990:59_995] = 1
    path = tmp_path / "far.zip"
    path.write_bytes(encode_rois(trace_cells(labels), labels.shape))
    roi = roifile.roiread(path)
    roi = roi[0] if isinstance(roi, list) else roi
    assert sorted(set(np.asarray(roi.coordinates())[:, 0].tolist())) == [59_990, 59_995]
    with pytest.raises(ImageError, match="60,535"):
        encode_rois([], (2, 70_000))


def test_geojson_has_the_fields_that_qupath_reads() -> None:
    collection = json.loads(encode_geojson(trace_cells(drawn()), PROVENANCE))
    assert collection["type"] == "FeatureCollection"
    assert collection["provenance"] == PROVENANCE
    feature = collection["features"][0]
    assert (feature["type"], feature["geometry"]["type"]) == ("Feature", "Polygon")
    assert feature["properties"]["objectType"] == "detection"
    assert feature["properties"]["name"] == "1"
    assert set(feature["properties"]["classification"]) == {"name", "color"}


def rows(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode())))


def test_the_table_of_a_case_worked_out_by_hand() -> None:
    labels = np.zeros((20, 40), np.int32)
    labels[3:7, 10:20], labels[12, 5] = 1, 2
    image = np.zeros((20, 40), np.uint16)
    image[3:7, 10:15], image[3:7, 15:20], image[12, 5] = 1000, 3000, 7
    first, second = rows(encode_table(labels, image, PROVENANCE))
    assert (first["label"], first["area_px"], second["area_px"]) == ("1", "40", "1")
    assert (float(first["centroid_x_px"]), float(first["centroid_y_px"])) == (14.5, 4.5)
    box = [first[f"bbox_{name}_px"] for name in ("x", "y", "width", "height")]
    assert box == ["10", "3", "10", "4"]
    assert (float(first["mean_intensity"]), float(second["mean_intensity"])) == (2000, 7)
    assert 0 < float(first["circularity"]) < 0.9
    assert 0 < float(second["circularity"]) <= 1
    assert (first["software"], first["model_version"], first["threshold"]) == ("Maskwell", "abc", "0.5")


def test_a_disc_is_round_and_its_perimeter_that_of_a_circle() -> None:
    ys, xs = np.mgrid[:101, :101] - 50
    labels = (ys**2 + xs**2 <= 40**2).astype(np.int32)
    [row] = rows(encode_table(labels, labels.astype(np.float32)))
    assert float(row["perimeter_px"]) == pytest.approx(2 * np.pi * 40, rel=0.02)
    assert float(row["circularity"]) > 0.95


def test_colour_has_a_mean_a_channel_and_alpha_none() -> None:
    labels = np.ones((4, 5), np.int32)
    image = np.full((4, 5, 4), (10, 20, 30, 255), np.uint8)
    [row] = rows(encode_table(labels, image))
    assert [float(row[f"mean_intensity_{name}"]) for name in "rgb"] == [10, 20, 30]
    assert not [name for name in row if name.endswith("_3")]


def test_small_floats_keep_their_digits_and_pixels_that_are_no_numbers_do_not_count() -> None:
    labels = np.array([[1, 1, 2, 2, 3]], np.int32)
    image = np.array([[1.23456e-5, 1.23456e-5, 4.0, np.nan, np.inf]], np.float32)
    means = [row["mean_intensity"] for row in rows(encode_table(labels, image))]
    assert [float(value) for value in means[:2]] == pytest.approx([1.23456e-5, 4.0])
    assert means[2] == ""


def test_a_picture_beyond_imagejs_reach_has_all_but_regions() -> None:
    cell = np.zeros((2, 61_000), np.float32)
    cell[:, 10:20] = 0.9
    segmentation = Segmentation(Maps.from_probabilities(cell), threshold=0.5, min_area_px=0)
    data, _ = encode_output("all", segmentation, np.zeros((2, 61_000), np.uint8), {})
    names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    assert "rois.zip" not in names
    assert len(names) == 7


def test_no_cells_give_an_empty_table_with_its_heading_no_regions_and_no_features() -> None:
    labels = np.zeros((5, 6), np.int32)
    assert encode_table(labels, labels.astype(np.uint8)).decode().startswith("label,area_px,")
    assert rows(encode_table(labels, labels.astype(np.uint8))) == []
    assert json.loads(encode_geojson(trace_cells(labels)))["features"] == []
    assert zipfile.ZipFile(io.BytesIO(encode_rois([], labels.shape))).namelist() == []


@pytest.mark.parametrize("file_format", ["png", "tiff"])
def test_a_picture_without_cells_has_a_summary_that_says_so_where_the_table_has_no_row(file_format: Any) -> None:
    segmentation = Segmentation(Maps.from_probabilities(np.zeros((30, 40), np.float32)), threshold=0.5, min_area_px=0)
    image = np.zeros((30, 40), np.uint8)
    data, _ = encode_output("all", segmentation, image, {"X-Model": "m"}, file_format=file_format)
    archive = zipfile.ZipFile(io.BytesIO(data))
    assert rows(archive.read("table.csv")) == []
    summary = json.loads(archive.read("summary.json"))
    assert summary == {
        "planes": [{"plane": 0, "width_px": 40, "height_px": 30, "cells": 0, "quality": "empty"}],
        "provenance": {"Software": "Maskwell", "X-Model": "m"},
    }


def test_all_holds_every_output_with_one_set_of_numbers() -> None:
    cell = np.zeros((30, 40), np.float32)
    cell[5:15, 5:15], cell[20:26, 22:38] = 0.9, 0.8
    segmentation = Segmentation(Maps.from_probabilities(cell), threshold=0.5, min_area_px=3)
    image = (cell * 255).astype(np.uint8)

    def encode(output: Any) -> bytes:
        return encode_output(output, segmentation, image, {"X-Threshold": "0.5"})[0]

    archive = zipfile.ZipFile(io.BytesIO(encode("all")))
    names = {
        "mask.png": "mask", "probability.png": "probability", "labels.png": "labels", "overlay.png": "overlay",
        "cells.geojson": "geojson", "table.csv": "table", "rois.zip": "rois",
    }  # fmt: skip
    assert archive.namelist() == [*names, "summary.json"]
    for name, output in names.items():
        assert archive.read(name) == encode(output)
    assert archive.comment == b"Software=Maskwell\nX-Threshold=0.5"
    view = zipfile.ZipFile(io.BytesIO(encode("view")))
    assert view.namelist() == ["image.png", "mask.png", "probability.png", "labels.png"]
    assert all(view.read(name) == archive.read(name) for name in view.namelist()[1:])
    assert PillowImage.open(io.BytesIO(view.read("image.png"))).size == (40, 30)
    labels = np.asarray(PillowImage.open(io.BytesIO(archive.read("labels.png")))).astype(np.int32)
    np.testing.assert_array_equal(from_geojson(archive.read("cells.geojson"), labels.shape), labels)
    assert [int(row["label"]) for row in rows(archive.read("table.csv"))] == [1, 2]


def test_lengths_and_areas_are_in_micrometres_where_the_pixel_size_is_known() -> None:
    labels = np.zeros((20, 40), np.int32)
    labels[3:7, 10:20] = 1
    image = labels.astype(np.uint8)
    [row] = rows(encode_table(labels, image, pixel_size=PixelSize(0.5, 0.5)))
    assert (row["area_px"], float(row["area_um2"])) == ("40", 10)
    assert [float(row[f"centroid_{axis}_um"]) for axis in "xy"] == [7.25, 2.25]
    assert [float(row[f"bbox_{name}_um"]) for name in ("x", "y", "width", "height")] == [5, 1.5, 5, 2]
    assert float(row["perimeter_um"]) == pytest.approx(float(row["perimeter_px"]) / 2)
    [row] = rows(encode_table(labels, image, pixel_size=PixelSize(0.5, 2)))
    assert (float(row["area_um2"]), float(row["centroid_y_um"]), float(row["bbox_height_um"])) == (40, 9, 8)
    assert "perimeter_um" not in row  # of pixels that are not square there is no one factor
    assert not [name for name in rows(encode_table(labels, image))[0] if "_um" in name]


@pytest.mark.parametrize("file_format", ["png", "tiff"])
@pytest.mark.parametrize("output", get_args(Output))
def test_every_file_says_what_made_it(output: Output, file_format: Any) -> None:
    cell = np.zeros((30, 40), np.float32)
    cell[5:15, 5:15] = 0.9
    segmentation = Segmentation(Maps.from_probabilities(cell), threshold=0.5, min_area_px=0)
    made = {"X-Model": "größe", "X-Model-Version": "abc", "X-Pixel-Size-Um": "0.5 x 0.5"}
    image, size = (cell * 255).astype(np.uint8), PixelSize(0.5, 0.5)
    data, media_type = encode_output(output, segmentation, image, made, file_format=file_format, pixel_size=size)
    assert find_provenance(data, media_type).items() >= {"Software": "Maskwell", **made}.items()
    if media_type == "application/zip" and output != "rois":
        archive = zipfile.ZipFile(io.BytesIO(data))
        kinds = {suffix: kind for kind, suffix in SUFFIXES.items()}
        for name in archive.namelist():
            if name == "summary.json":
                assert json.loads(archive.read(name))["provenance"].items() >= made.items()
                continue
            found = find_provenance(archive.read(name), kinds[Path(name).suffix])
            assert found.items() >= made.items(), name


def find_provenance(data: bytes, media_type: str) -> dict[str, str]:
    if media_type == "image/png":
        return {str(key): str(value) for key, value in PillowImage.open(io.BytesIO(data)).info.items()}
    if media_type == "application/geo+json":
        return dict(json.loads(data)["provenance"])
    if media_type == "text/csv":
        [row] = rows(data)
        return {
            "Software": row["software"], "X-Model": row["model"], "X-Model-Version": row["model_version"],
            "X-Pixel-Size-Um": row["pixel_size_um"],
        }  # fmt: skip
    if media_type == "image/tiff":
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            text = str((tiff.imagej_metadata or {})["Info"])
    else:
        text = zipfile.ZipFile(io.BytesIO(data)).comment.decode()
    return dict(line.split("=", 1) for line in text.splitlines())


def test_every_cell_of_a_crowded_picture_comes_back_with_an_iou_of_1(tmp_path: Path) -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=(200, 260)), 2.5)
    labels: Labels = ndimage.label(noise > 0.02)[0].astype(np.int32)
    labels = np.where(ndimage.gaussian_filter(noise, 1) > 0.1, 0, labels).astype(np.int32)  # with holes
    labels = ndimage.label(labels > 0)[0].astype(np.int32)
    n = int(labels.max())
    assert n > 50
    outlines = trace_cells(labels)
    assert sum(len(rings) > 1 for outline in outlines for rings in outline.polygons) > 10
    for found in (
        from_geojson(encode_geojson(outlines), labels.shape),
        from_rois(encode_rois(outlines, labels.shape), labels.shape, tmp_path),
    ):
        both = np.bincount(labels[labels == found], minlength=n + 1)[1:]
        either = (
            np.bincount(labels.ravel(), minlength=n + 1)[1:] + np.bincount(found.ravel(), minlength=n + 1)[1:] - both
        )
        assert (both / either == 1).all()
