"""What the service answers, read by the programs that it is for: napari, QuPath's rules, ImageJ's regions."""

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import roifile
import shapely
import shapely.geometry
import tifffile
from PIL import Image as PillowImage

from model.images import encode_labels
from tests.e2e.kit import ROOT, ServerProcess, draw_cells, write_weights
from tests.recipes.qupath import read_as_qupath

GREY = draw_cells(120, 170, 4)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("weights")
    write_weights(folder / "best_model.pth", min_area_px=5, tile_px=(128,))
    with ServerProcess(folder, folder / "server.log") as process:
        yield process


@pytest.fixture(scope="module")
def labels(server: ServerProcess) -> npt.NDArray[np.int32]:
    found = np.asarray(PillowImage.open(io.BytesIO(ask(server, "labels")))).astype(np.int32)
    assert found.max() > 3
    return found


def ask(server: ServerProcess, output: str, **query: str) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        GREY,
        imagej=True,
        resolution=(4.0, 4.0),
        metadata={"axes": "YX", "unit": "um"},  # 0.25 um a pixel
    )
    files = {"file": ("cells.tif", buffer.getvalue())}
    answer = httpx.post(f"{server.url}/segment", files=files, params={"output": output, **query}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.content


def open_in_napari(folder: Path, name: str, data: bytes) -> npt.NDArray[Any]:
    tifffile.imwrite(folder / "cells.tif", GREY, photometric="minisblack")
    (folder / name).write_bytes(data)
    command = [sys.executable, str(ROOT / "tests/recipes/napari_run.py"), "cells.tif", name, "out.npy"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    shown: npt.NDArray[Any] = np.load(folder / "out.npy")
    return shown


@pytest.mark.slow
def test_napari_opens_the_labels_as_labels(
    server: ServerProcess, labels: npt.NDArray[np.int32], tmp_path: Path
) -> None:
    shown = open_in_napari(tmp_path, "cells_labels.png", ask(server, "labels"))
    np.testing.assert_array_equal(shown, labels)
    assert shown.dtype.kind in "ui"  # a layer of labels takes nothing else


@pytest.mark.slow
def test_napari_opens_the_tiff_of_the_labels(
    server: ServerProcess, labels: npt.NDArray[np.int32], tmp_path: Path
) -> None:
    shown = open_in_napari(tmp_path, "cells_labels.tif", ask(server, "labels", format="tiff"))
    np.testing.assert_array_equal(shown, labels)


def test_fiji_shows_the_tiff_of_the_labels_from_the_first_to_the_last(
    server: ServerProcess, labels: npt.NDArray[np.int32]
) -> None:
    with tifffile.TiffFile(io.BytesIO(ask(server, "labels", format="tiff"))) as tiff:
        assert tiff.is_imagej
        said = tiff.imagej_metadata
        assert said is not None
        np.testing.assert_array_equal(tiff.asarray(), labels)
        assert (said["min"], said["max"]) == (0, labels.max())
        assert said["unit"] in ("micron", "um", "\\u00B5m")
        width, per = tiff.pages.first.tags["XResolution"].value
        assert width / per == 4.0


@pytest.mark.slow
def test_napari_opens_labels_beyond_16_bits(labels: npt.NDArray[np.int32], tmp_path: Path) -> None:
    many = np.where(labels > 0, labels + 70_000, 0).astype(np.int32)
    data, media_type = encode_labels(many)
    assert media_type == "image/tiff"
    np.testing.assert_array_equal(open_in_napari(tmp_path, "cells_labels.tif", data), many)


def test_qupath_takes_every_part_of_the_geojson(server: ServerProcess, labels: npt.NDArray[np.int32]) -> None:
    found = read_as_qupath(json.loads(ask(server, "geojson")))
    assert [int(cell["name"]) for cell in found] == list(range(1, labels.max() + 1))
    assert {cell["objectType"] for cell in found} == {"detection"}
    areas = [shapely.geometry.shape(cell["geometry"]).area for cell in found]
    np.testing.assert_array_equal(areas, np.bincount(labels.ravel())[1:])  # pixel corners: no half pixel is lost


def test_fiji_s_manager_gets_a_region_for_each_cell(
    server: ServerProcess, labels: npt.NDArray[np.int32], tmp_path: Path
) -> None:
    (tmp_path / "RoiSet.zip").write_bytes(ask(server, "rois"))
    read = roifile.roiread(tmp_path / "RoiSet.zip")
    assert isinstance(read, list)
    assert [int(roi.name) for roi in read] == list(range(1, labels.max() + 1))
    for number, roi in enumerate(read, start=1):
        ys, xs = np.nonzero(labels == number)
        assert (roi.left, roi.top, roi.right, roi.bottom) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    with zipfile.ZipFile(tmp_path / "RoiSet.zip") as archive:
        assert all(name.endswith(".roi") for name in archive.namelist())  # others the manager would not list
