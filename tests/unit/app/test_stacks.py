"""Stacks over HTTP: every plane as a picture of its own, and all of them in one file with one set of numbers."""

import csv
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import roifile
import tifffile
from starlette.testclient import TestClient

from app import service
from app.main import create_app
from app.settings import Settings
from model.images import encode_labels, encode_mask, encode_probability
from model.segmenter import Segmenter
from tests.e2e.kit import decode, draw_cells, load_reference, write_weights
from tests.files import by_tifffile

STACK = np.stack([draw_cells(60, 80, seed) for seed in range(6)]).reshape(2, 3, 60, 80)  # T Z Y X
PLANES = STACK.reshape(6, 60, 80)


HYPERSTACK = by_tifffile(
    STACK.astype(np.uint16) * 200,
    imagej=True,
    resolution=(4, 4),
    metadata={"axes": "TZYX", "unit": "um", "spacing": 1.5},
)
PLAIN = by_tifffile(PLANES, photometric="minisblack")
CHANNELS = by_tifffile(STACK, ome=True, metadata={"axes": "ZCYX", "Channel": {"Name": ["DAPI", "GFP", "RFP"]}})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    write_weights(folder / "best_model.pth")
    return folder


@pytest.fixture(scope="module")
def client(weights: Path) -> Iterator[TestClient]:
    settings: dict[str, Any] = {
        "weights_dir": weights, "device": "cpu", "reload_poll_s": 0, "max_pixels": 40_000, "max_queue_pixels": 50_000,
    }  # fmt: skip
    with TestClient(create_app(Settings(**settings))) as client:
        yield client


@pytest.fixture(scope="module")
def reference(weights: Path) -> Segmenter:
    return load_reference(weights / "best_model.pth")


def post(client: TestClient, data: bytes, **query: Any) -> Any:
    return client.post("/segment", files={"file": ("stack.tif", data)}, params=query)


def read(answer: Any) -> tuple[str, npt.NDArray[Any]]:
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/tiff"), answer.text[:500]
    with tifffile.TiffFile(io.BytesIO(answer.content)) as tiff:
        return tiff.series[0].axes, tiff.asarray()


def test_a_stack_whose_axes_are_known_comes_back_as_one_plane_by_plane(
    client: TestClient, reference: Segmenter
) -> None:
    expected = [reference.segment(plane.astype(np.uint16) * 200) for plane in PLANES]
    axes, masks = read(post(client, HYPERSTACK))
    assert (axes, masks.shape, str(masks.dtype)) == ("TZYX", STACK.shape, "uint8")
    axes, labels = read(post(client, HYPERSTACK, output="labels"))
    assert (axes, str(labels.dtype)) == ("TZYX", "uint16")
    _, probabilities = read(post(client, HYPERSTACK, output="probability"))
    _, overlays = read(post(client, HYPERSTACK, output="overlay"))
    assert overlays.shape == (*STACK.shape, 3)
    for index, segmentation in enumerate(expected):
        place = np.unravel_index(index, STACK.shape[:2])
        np.testing.assert_array_equal(masks[place], decode(encode_mask(segmentation.mask())))
        np.testing.assert_array_equal(labels[place], decode(encode_labels(segmentation.labels())[0]))
        np.testing.assert_array_equal(probabilities[place], decode(encode_probability(segmentation.probability)))


def test_the_answer_says_the_pixel_size_and_what_made_it(client: TestClient) -> None:
    answer = post(client, HYPERSTACK, output="labels")
    assert answer.headers["x-pixel-size-um"] == "0.25 x 0.25"
    with tifffile.TiffFile(io.BytesIO(answer.content)) as tiff:
        about = tiff.imagej_metadata or {}
        assert (about["unit"], about["spacing"]) == ("um", 1.5)
        assert tiff.pages.first.tags["XResolution"].value == (4, 1)
        info = dict(line.split("=", 1) for line in about["Info"].splitlines())
        assert about["max"] == tiff.asarray().max() > 0
    assert info["X-Model-Version"] == answer.headers["x-model-version"]
    assert info["X-Pixel-Size-Um"] == "0.25 x 0.25"


def test_planes_without_a_name_are_refused_until_all_or_one_or_their_axes_are_said(client: TestClient) -> None:
    refused = post(client, PLAIN)
    assert (refused.status_code, refused.json()["code"]) == (422, "ambiguous_axes")
    for way in ("axes QYX of shape (6, 60, 80)", "6 planes", "page=0 to page=5", "page=all", "axes=ZYX"):
        assert way in refused.json()["detail"]
    for query in ({"page": "all"}, {"axes": "ZYX"}):
        axes, masks = read(post(client, PLAIN, **query))
        assert (axes, masks.shape) == ("ZYX", PLANES.shape)
    axes, times = read(post(client, PLAIN, axes="TYX"))
    assert axes == "TYX"
    np.testing.assert_array_equal(times, masks)
    one = post(client, PLAIN, page=4)
    assert one.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(decode(one.content), masks[4])


def test_channels_are_not_segmented_each_unless_that_is_said(client: TestClient) -> None:
    refused = post(client, CHANNELS)
    assert (refused.status_code, refused.json()["code"]) == (422, "ambiguous_axes")
    assert "3 channels (DAPI, GFP, RFP)" in refused.json()["detail"]
    assert read(post(client, CHANNELS, channel="GFP"))[0] == "ZYX"
    axes, masks = read(post(client, CHANNELS, page="all"))
    assert (axes, masks.shape) == ("ZCYX", STACK.shape)
    np.testing.assert_array_equal(masks[:, 1], read(post(client, CHANNELS, channel=1))[1])
    one = post(client, CHANNELS, channel="GFP", page=1)
    np.testing.assert_array_equal(decode(one.content), masks[1, 1])


def test_table_outlines_and_regions_say_their_plane(client: TestClient, tmp_path: Path) -> None:
    _, labels = read(post(client, HYPERSTACK, output="labels"))
    flat = labels.reshape(6, 60, 80)
    table = list(csv.DictReader(io.StringIO(post(client, HYPERSTACK, output="table").text)))
    assert list(table[0])[:5] == ["plane", "n_planes", "t", "z", "label"]
    assert {row["n_planes"] for row in table} == {"6"}
    for plane in range(6):
        found = [row for row in table if row["plane"] == str(plane)]
        assert [int(row["label"]) for row in found] == list(range(1, int(flat[plane].max()) + 1))
        assert {(row["t"], row["z"]) for row in found} == {(str(plane // 3), str(plane % 3))}
        assert [int(row["area_px"]) for row in found] == np.bincount(flat[plane].ravel())[1:].tolist()
        for row in found:
            assert float(row["area_um2"]) == pytest.approx(int(row["area_px"]) / 16)
    features = json.loads(post(client, HYPERSTACK, output="geojson").content)["features"]
    places = [(each["geometry"]["plane"]["t"], each["geometry"]["plane"]["z"]) for each in features]
    assert places == [(int(row["t"]), int(row["z"])) for row in table]
    assert [each["properties"]["name"] for each in features] == [row["label"] for row in table]
    path = tmp_path / "rois.zip"
    path.write_bytes(post(client, HYPERSTACK, output="rois").content)
    rois = roifile.roiread(path)
    assert isinstance(rois, list)
    assert [(roi.t_position - 1, roi.z_position - 1) for roi in rois] == places
    assert len({roi.name for roi in rois}) == len(rois)
    path.write_bytes(post(client, PLAIN, axes="ZYX", output="rois").content)
    single = roifile.roiread(path)
    assert isinstance(single, list)
    assert sorted({roi.position for roi in single}) == [1, 2, 3, 4, 5, 6]


def test_all_of_a_stack_is_a_zip_of_stacks(client: TestClient) -> None:
    archive = zipfile.ZipFile(io.BytesIO(post(client, HYPERSTACK, output="all").content))
    names = {
        "mask.tif": "mask", "probability.tif": "probability", "labels.tif": "labels", "overlay.tif": "overlay",
        "cells.geojson": "geojson", "table.csv": "table", "rois.zip": "rois",
    }  # fmt: skip
    assert archive.namelist() == [*names, "summary.json"]
    for name, output in names.items():
        assert archive.read(name) == post(client, HYPERSTACK, output=output).content, name


def test_planes_without_cells_have_no_row_in_the_table_and_are_told_by_their_number_and_the_summary(
    client: TestClient,
) -> None:
    _, labels = read(post(client, HYPERSTACK, output="labels"))
    # areas that leave some planes without a cell
    largest = [int(np.bincount(plane.ravel())[1:].max()) for plane in labels.reshape(6, 60, 80)]
    query = {"min_area_px": sorted(largest)[3]}
    kept = [area >= query["min_area_px"] for area in largest]
    assert 0 < sum(kept) < 6
    table = list(csv.DictReader(io.StringIO(post(client, HYPERSTACK, output="table", **query).text)))
    assert {int(row["plane"]) for row in table} == {plane for plane in range(6) if kept[plane]}
    assert {row["n_planes"] for row in table} == {"6"}
    answer = post(client, HYPERSTACK, output="all", **query)
    planes = json.loads(zipfile.ZipFile(io.BytesIO(answer.content)).read("summary.json"))["planes"]
    assert [(plane["plane"], plane["t"], plane["z"]) for plane in planes] == [(n, n // 3, n % 3) for n in range(6)]
    counts = [sum(row["plane"] == str(plane) for row in table) for plane in range(6)]
    assert [plane["cells"] for plane in planes] == counts
    assert ["empty" in plane["quality"] for plane in planes] == [not any_left for any_left in kept]


def test_one_plane_is_png_unless_tiff_is_asked_for(client: TestClient) -> None:
    plane = by_tifffile(PLANES[0], imagej=True, resolution=(2, 2), metadata={"axes": "YX", "unit": "um"})
    for output in ("mask", "labels", "probability", "overlay"):
        png = post(client, plane, output=output)
        assert png.headers["content-type"] == "image/png"
        axes, pixels = read(post(client, plane, output=output, format="tiff"))
        assert axes == ("YXS" if output == "overlay" else "YX")
        expected = decode(png.content)
        np.testing.assert_array_equal(pixels, expected[..., ::-1] if output == "overlay" else expected)
    archive = zipfile.ZipFile(io.BytesIO(post(client, plane, output="all", format="tiff").content))
    assert [name for name in archive.namelist() if name.endswith((".png", ".tif"))] == [
        "mask.tif", "probability.tif", "labels.tif", "overlay.tif",
    ]  # fmt: skip
    for name, output in (("table.csv", "table"), ("cells.geojson", "geojson"), ("rois.zip", "rois")):
        assert archive.read(name) == post(client, plane, output=output).content, name
    for output in ("table", "geojson", "rois", "view"):
        refused = post(client, plane, output=output, format="tiff")
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_parameter"), output
    assert post(client, HYPERSTACK, format="png").json()["code"] == "ambiguous_axes"


def test_a_view_and_a_preview_are_of_one_plane(client: TestClient) -> None:
    for answer in (
        post(client, HYPERSTACK, output="view"),
        client.post("/preview", files={"file": ("x", HYPERSTACK)}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (422, "ambiguous_axes")
        assert "6 planes" in answer.json()["detail"]
    assert post(client, HYPERSTACK, output="view", page=1).status_code == 200
    assert client.post("/preview", files={"file": ("x", HYPERSTACK)}, params={"page": "all"}).status_code == 422


def test_more_planes_than_may_wait_are_refused_before_decoding(client: TestClient) -> None:
    many = by_tifffile(np.zeros((11, 60, 80), np.uint8), imagej=True, metadata={"axes": "ZYX"})
    refused = post(client, many)
    assert (refused.status_code, refused.json()["code"]) == (413, "image_too_large")
    assert "11 planes of 80 x 60 px = 52,800 pixels; at most 50,000" in refused.json()["detail"]
    assert post(client, many, page=10).status_code == 200


def test_a_few_planes_are_under_way_at_a_time(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    most = 0
    lock = threading.Lock()
    prepare, encode = service._prepare_plane, service._encode_plane

    def note_prepare(source: Any, plane: int, *arguments: Any) -> Any:
        nonlocal most
        with lock:
            begun.append(plane)
            most = max(most, len(begun))
        return prepare(source, plane, *arguments)

    def note_encode(*arguments: Any, **options: Any) -> Any:
        with lock:
            begun.pop()
        return encode(*arguments, **options)

    monkeypatch.setattr(service, "_prepare_plane", note_prepare)
    monkeypatch.setattr(service, "_encode_plane", note_encode)
    planes = by_tifffile(np.stack([draw_cells(16, 18, seed) for seed in range(30)]), photometric="minisblack")
    axes, masks = read(post(client, planes, page="all"))
    assert (axes, masks.shape) == ("ZYX", (30, 16, 18))
    assert begun == []
    assert 1 <= most <= service.BATCH_WINDOW == 4


@pytest.mark.parametrize("page", ["-1", "1.5", "every", "", "99999999999", "٣"])
def test_a_page_that_is_no_number_is_refused(client: TestClient, page: str) -> None:
    refused = post(client, PLAIN, page=page)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_parameter")
    assert "'all'" in refused.json()["detail"]


def test_stacks_in_a_batch_stand_beside_pictures_and_a_damaged_plane_fails_its_stack_alone(client: TestClient) -> None:
    small = by_tifffile(np.stack([draw_cells(16, 18, seed) for seed in (1, 2)]), imagej=True, metadata={"axes": "TYX"})
    broken = by_tifffile(
        np.stack([draw_cells(16, 18, seed) for seed in (1, 2)]),
        imagej=True, metadata={"axes": "TYX"}, compression="zlib",
    )  # fmt: skip
    with tifffile.TiffFile(io.BytesIO(broken)) as tiff:
        at = tiff.pages[1].dataoffsets[0]
    broken = broken[:at] + b"\xff" * 20 + broken[at + 20 :]
    files = [("files", ("a.tif", small)), ("files", ("b.tif", broken)), ("files", ("c.tif", by_tifffile(PLANES[0])))]
    answer = client.post("/segment/batch", files=files, params={"output": "labels"})
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert archive.namelist() == ["a_labels.tif", "c_labels.png", "errors.json"]
    [problem] = json.loads(archive.read("errors.json"))
    assert (problem["file"], problem["problem"]["code"]) == ("b.tif", "undecodable_image")
    assert archive.read("a_labels.tif") == post(client, small, output="labels").content
    health = client.get("/health").json()["queue"]
    assert (health["requests"], health["pixels"], health["waiting_tiles"]) == (0, 0, 0)
