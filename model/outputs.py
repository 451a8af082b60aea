"""What is made of a segmentation: pictures, outlines for QuPath and ImageJ, a table; all with the same numbers."""

import csv
import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import roifile
from skimage.measure import regionprops_table

from model.bands import cut_rows
from model.errors import ImageError
from model.images import draw_overlay, encode_labels, encode_mask, encode_png, encode_probability, to_display
from model.quality import Flag, describe_quality
from model.segmenter import Segmentation
from model.shapes import Outline, Ring, trace_cells
from model.source import PixelSize
from model.tiff_writer import PackedPlane, Places, encode_tiff, find_places, pack, pack_labels
from model.types import Image, Labels

Output = Literal["mask", "probability", "labels", "overlay", "geojson", "rois", "table", "all", "view"]
Format = Literal["png", "tiff"]
PICTURES = ("mask", "probability", "labels", "overlay")
# Outputs that show the image or measure it.
NEEDS_IMAGE = ("overlay", "table", "all", "view")
SUFFIXES = {
    "image/png": ".png",
    "image/tiff": ".tif",
    "application/geo+json": ".geojson",
    "text/csv": ".csv",
    "application/zip": ".zip",
}
# ImageJ stores corners as 16-bit numbers from -5000 on.
MAX_ROI_SIDE_PX = 60_535
# Pixels that are summed up at a time.
BAND_PX = 1 << 20
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date that a zip knows: identical input gives identical bytes

QUALITY = "X-Quality"  # the service's header
Encoded = tuple[bytes, str]  # a file and its media type; SUFFIXES has the suffix


def encode_output(
    output: Output,
    segmentation: Segmentation,
    image: Image | None,
    provenance: Mapping[str, str],
    *,
    file_format: Format = "png",
    pixel_size: PixelSize | None = None,
) -> Encoded:
    """Write one output of a segmentation.

    Args:
        output: which.
        segmentation: of the image.
        image: as decoded, (H, W) or (H, W, C); may be None but for those of NEEDS_IMAGE.
        provenance: what made it, by header name (`X-Model-Version`, ...); goes into the file.
        file_format: of pictures; `tiff` is one that ImageJ reads, with the pixel size.
        pixel_size: of the image, if it is known.

    Returns:
        The bytes and their media type; the same bytes for the same input.

    Raises:
        ImageError: the image is too large for ImageJ's regions, or it has too many cells for its pictures.
    """
    text = {"Software": "Maskwell", **provenance}
    if file_format == "tiff" and output in (*PICTURES, "all"):
        plane = encode_plane(output, segmentation, image, pixel_size=pixel_size)
        return join_planes(output, [plane], provenance, pixel_size=pixel_size)
    if output == "mask":
        return encode_mask(segmentation.mask(), text), "image/png"
    if output == "probability":
        return encode_probability(segmentation.maps.cell, text), "image/png"
    labels = segmentation.labels()
    if output == "labels":
        return encode_labels(labels, text)
    if output == "geojson":
        return encode_geojson(trace_cells(labels), text), "application/geo+json"
    if output == "rois":
        return encode_rois(trace_cells(labels), labels.shape, text), "application/zip"
    if image is None:
        raise ValueError(f"{output} needs the image")
    if output == "overlay":
        return encode_png(draw_overlay(image, labels), text), "image/png"
    if output == "table":
        return encode_table(labels, image, text, pixel_size=pixel_size, quality=segmentation.quality()), "text/csv"
    data, media_type = encode_labels(labels, text)
    parts = {
        "mask.png": encode_mask(labels > 0, text),
        "probability.png": encode_probability(segmentation.maps.cell, text),
        f"labels{SUFFIXES[media_type]}": data,
    }
    if output == "view":
        return write_zip({"image.png": encode_png(to_display(image), text), **parts}, text), "application/zip"
    outlines = trace_cells(labels)
    parts |= {
        "overlay.png": encode_png(draw_overlay(image, labels), text),
        "cells.geojson": encode_geojson(outlines, text),
        "table.csv": encode_table(labels, image, text, pixel_size=pixel_size, quality=segmentation.quality()),
    }
    if max(labels.shape) <= MAX_ROI_SIDE_PX:  # beyond, ImageJ could not say where they are
        parts["rois.zip"] = encode_rois(outlines, labels.shape, text)
    facts = [_describe_plane({}, labels.shape, len(outlines), segmentation.quality())]
    parts["summary.json"] = _encode_summary(facts, text)
    return write_zip(parts, text), "application/zip"


@dataclass(frozen=True)
class PlaneParts:
    """What one plane of a stack contributes to an output, compressed where it is large.

    Attributes:
        shape: (H, W).
        pictures: by name of the output.
        outlines: where outlines are asked for.
        table: columns by name, where a table is asked for.
        quality: signs that the plane's answer may not be trusted.
    """

    shape: tuple[int, ...]
    pictures: Mapping[str, PackedPlane]
    outlines: list[Outline] | None = None
    table: Mapping[str, npt.NDArray[Any]] | None = None
    quality: tuple[Flag, ...] = ()


def encode_plane(
    output: Output, segmentation: Segmentation, image: Image | None, *, pixel_size: PixelSize | None = None
) -> PlaneParts:
    """Do what can be done for one plane of a stack alone; arguments and errors as in encode_output."""
    if output in NEEDS_IMAGE and image is None:
        raise ValueError(f"{output} needs the image")
    wanted = PICTURES if output == "all" else (output,)
    if output in ("mask", "probability"):  # without labels, which take longer than either
        values = segmentation.mask() * np.uint8(255) if output == "mask" else segmentation.maps.cell
        quality = segmentation.quality(with_labels=output == "mask")
        return PlaneParts(values.shape, {output: pack(values)}, quality=quality)
    labels = segmentation.labels()
    pictures = {}
    if "mask" in wanted:
        pictures["mask"] = pack((labels > 0) * np.uint8(255))
    if "probability" in wanted:
        pictures["probability"] = pack(segmentation.maps.cell)
    if "labels" in wanted:
        pictures["labels"] = pack_labels(labels)
    if "overlay" in wanted and image is not None:
        pictures["overlay"] = pack(draw_overlay(image, labels))
    quality = segmentation.quality()
    table = None
    if output in ("table", "all") and image is not None:
        table = measure_cells(labels, image, pixel_size, quality)
    outlines = trace_cells(labels) if output in ("geojson", "rois", "all") else None
    return PlaneParts(labels.shape, pictures, outlines, table, quality)


def join_planes(
    output: Output,
    planes: Sequence[PlaneParts],
    provenance: Mapping[str, str],
    *,
    axes: str = "",
    sizes: tuple[int, ...] = (),
    pixel_size: PixelSize | None = None,
) -> Encoded:
    """Write one output of a stack. Cells are numbered in each plane by itself.

    Pictures become a multi-page TIFF that ImageJ opens as a hyperstack. Outlines say their plane in the way of QuPath,
    regions in that of ImageJ, and the table has the columns `plane`, which is what `page` counts, `n_planes`, and `t`,
    `z`, `c` where the axes are known. Planes without cells have no row there; in `all` the summary has each plane.

    Args:
        output: one that several planes can have, so not `view`.
        planes: of encode_plane for this output, in their order.
        provenance: as in encode_output.
        axes, sizes: on which the planes lie, the last one fastest; empty for a single plane.
        pixel_size: if it is known.

    Returns:
        The bytes and their media type.
    """
    text = {"Software": "Maskwell", **provenance}
    places = find_places(axes, sizes)
    files: dict[str, bytes] = {}
    for name in planes[0].pictures:
        packed = [plane.pictures[name] for plane in planes]
        files[f"{name}.tif"] = encode_tiff(packed, axes=axes, sizes=sizes, pixel_size=pixel_size, text=text)
    if output in PICTURES:
        return files[f"{output}.tif"], "image/tiff"
    outlines = [plane.outlines or [] for plane in planes]
    shape = planes[0].shape
    if output in ("geojson", "all"):
        files["cells.geojson"] = _encode_geojson(outlines, places, text)
    if output in ("table", "all"):
        tables = [_with_plane(plane.table or {}, index, axes, sizes) for index, plane in enumerate(planes)]
        files["table.csv"] = _write_csv(tables, text)
    if output == "rois" or (output == "all" and max(shape) <= MAX_ROI_SIDE_PX):  # beyond, ImageJ has no numbers
        files["rois.zip"] = _encode_rois(outlines, shape, places, text)
    if output == "all":
        facts = [
            _describe_plane(_place(index, axes, sizes), plane.shape, len(plane.outlines or []), plane.quality)
            for index, plane in enumerate(planes)
        ]
        files["summary.json"] = _encode_summary(facts, text)
        return write_zip(files, text), "application/zip"
    [(name, data)] = files.items()
    return data, {"cells.geojson": "application/geo+json", "table.csv": "text/csv", "rois.zip": "application/zip"}[name]


def encode_geojson(outlines: list[Outline], text: Mapping[str, str] | None = None) -> bytes:
    """A FeatureCollection that QuPath opens: a detection a cell, in pixels from the image's upper left corner."""
    return _encode_geojson([outlines], find_places("", ()), text)


def _encode_geojson(planes: Sequence[list[Outline]], places: Places, text: Mapping[str, str] | None) -> bytes:
    features = []
    for index, outlines in enumerate(planes):
        position = places.position(index)
        # as QuPath writes it; c of -1 is all channels
        plane = {"c": position.get("C", -1), "z": position.get("Z", 0), "t": position.get("T", 0)}
        features += [
            {
                "type": "Feature",
                "geometry": {**_geometry(outline), **({"plane": plane} if position else {})},
                "properties": {
                    "objectType": "detection",
                    "name": str(outline.label),
                    "classification": {"name": "cell", "color": [255, 220, 0]},
                },
            }
            for outline in outlines
        ]
    collection = {"type": "FeatureCollection", "features": features, "provenance": dict(text or {})}
    return json.dumps(collection, separators=(",", ":")).encode()


def encode_rois(outlines: list[Outline], shape: tuple[int, ...], text: Mapping[str, str] | None = None) -> bytes:
    """A RoiSet.zip for ImageJ's ROI manager: a region a cell, named by its number.

    Raises:
        ImageError: the image is larger than ImageJ's 16-bit corners can say.
    """
    return _encode_rois([outlines], shape, find_places("", ()), text)


def _encode_rois(
    planes: Sequence[list[Outline]], shape: tuple[int, ...], places: Places, text: Mapping[str, str] | None
) -> bytes:
    if max(shape) > MAX_ROI_SIDE_PX:
        raise ImageError(
            f"{shape[1]} x {shape[0]} px; ImageJ's regions reach {MAX_ROI_SIDE_PX:,} px: take geojson or labels"
        )
    digits = len(str(max((outlines[-1].label for outlines in planes if outlines), default=0)))
    plane_digits = len(str(len(planes)))
    files = {}
    for index, outlines in enumerate(planes):
        position = places.position(index)
        for outline in outlines:
            name = f"{outline.label:0{digits}d}"
            if position:
                name = f"{index + 1:0{plane_digits}d}-{name}"
            roi = _roi(outline, name)
            if len(position) == 1:  # ImageJ counts from 1
                roi.position = next(iter(position.values())) + 1
            elif position:
                roi.t_position, roi.z_position, roi.c_position = (position.get(axis, -1) + 1 for axis in "TZC")
            files[f"{name}.roi"] = roi.tobytes()
    return write_zip(files, text)


def encode_table(
    labels: Labels,
    image: Image,
    text: Mapping[str, str] | None = None,
    *,
    pixel_size: PixelSize | None = None,
    quality: Sequence[Flag] | None = None,
) -> bytes:
    """A CSV with a row a cell, in UTF-8: the columns of measure_cells, and the text's entries, alike in all rows."""
    return _write_csv([measure_cells(labels, image, pixel_size, quality)], text)


def measure_cells(
    labels: Labels, image: Image, pixel_size: PixelSize | None = None, quality: Sequence[Flag] | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Measure each cell; a column by name.

    Columns: `label`; `area_px`; `centroid_x_px`, `centroid_y_px`, where 0, 0 is the first pixel's middle; the bounding
    box as `bbox_x_px`, `bbox_y_px`, `bbox_width_px`, `bbox_height_px`; `perimeter_px` by Crofton's formula;
    `circularity`, 4 pi area / perimeter**2 and at most 1; `mean_intensity` of the image as it was sent, over finite
    pixels and empty where there are none, or `mean_intensity_r`, `_g`, `_b`.

    Where the pixel size is known also `area_um2`, centroid and bounding box with `_um` for `_px`, and, where pixels are
    square, `perimeter_um`. Where it is given the `quality` of the whole image, alike in all rows.
    """
    names = ("label", "area", "centroid", "bbox", "perimeter_crofton")
    measured: dict[str, npt.NDArray[Any]] = regionprops_table(labels, properties=names)  # type: ignore[no-untyped-call]
    area, perimeter = measured["area"], measured["perimeter_crofton"]
    columns: dict[str, npt.NDArray[Any]] = {
        "label": measured["label"],
        "area_px": area.astype(np.int64),
        "centroid_x_px": measured["centroid-1"].round(3),
        "centroid_y_px": measured["centroid-0"].round(3),
        "bbox_x_px": measured["bbox-1"],
        "bbox_y_px": measured["bbox-0"],
        "bbox_width_px": measured["bbox-3"] - measured["bbox-1"],
        "bbox_height_px": measured["bbox-2"] - measured["bbox-0"],
        "perimeter_px": perimeter.round(3),
        "circularity": np.minimum(4 * np.pi * area / np.maximum(perimeter, 1e-9) ** 2, 1).round(4),
    }
    if image.ndim == 2 or image.shape[2] == 1:
        planes = {"": image.reshape(labels.shape)}
    else:
        planes = {f"_{name}": image[..., index] for index, name in enumerate("rgb")}
    for suffix, plane in planes.items():
        means = _mean_intensity(labels, plane)[measured["label"]]
        columns[f"mean_intensity{suffix}"] = np.array(["" if np.isnan(mean) else f"{mean:.7g}" for mean in means])
    if pixel_size is not None:
        columns |= _in_micrometres(columns, pixel_size)
    if quality is not None:
        columns["quality"] = np.full(len(columns["label"]), describe_quality(quality))
    return columns


def _in_micrometres(columns: Mapping[str, npt.NDArray[Any]], size: PixelSize) -> dict[str, npt.NDArray[Any]]:
    """The lengths and areas among the columns."""
    found = {"area_um2": columns["area_px"] * (size.x_um * size.y_um)}
    for name in ("centroid", "bbox"):
        for end, length in (("x", size.x_um), ("y", size.y_um), ("width", size.x_um), ("height", size.y_um)):
            if f"{name}_{end}_px" in columns:
                found[f"{name}_{end}_um"] = columns[f"{name}_{end}_px"] * length
    if np.isclose(size.x_um, size.y_um, rtol=1e-3):
        found["perimeter_um"] = columns["perimeter_px"] * size.x_um
    # Seven digits, as for intensities: a resolution in a file is seldom known to more.
    return {name: np.array([f"{value:.7g}" for value in values.tolist()]) for name, values in found.items()}


def _with_plane(
    table: Mapping[str, npt.NDArray[Any]], plane: int, axes: str, sizes: tuple[int, ...]
) -> dict[str, npt.NDArray[Any]]:
    """The table with columns before it that say which plane it is of."""
    if not axes:
        return dict(table)
    where = _place(plane, axes, sizes)
    # planes without cells have no row: how many there are has to be said by the others
    where = {"plane": where.pop("plane"), "n_planes": math.prod(sizes), **where}
    count = len(table["label"])
    return {**{name: np.full(count, value) for name, value in where.items()}, **table}


def _place(plane: int, axes: str, sizes: tuple[int, ...]) -> dict[str, int]:
    """Where a plane lies: `plane`, and `t`, `z`, `c` where the axes are known; empty without axes."""
    if not axes:
        return {}
    place = dict(zip(axes, np.unravel_index(plane, sizes), strict=True))
    return {"plane": plane, **{axis.lower(): int(place[axis]) for axis in "TZC" if axis in place}}


def _describe_plane(
    place: Mapping[str, int], shape: tuple[int, ...], n_cells: int, quality: Sequence[Flag]
) -> dict[str, int | str]:
    size = {"width_px": shape[1], "height_px": shape[0]}
    return {"plane": 0, **place, **size, "cells": n_cells, "quality": describe_quality(quality)}


def _encode_summary(planes: Sequence[Mapping[str, int | str]], text: Mapping[str, str]) -> bytes:
    """What a table cannot say, for it has a row a cell: of every plane, also one without cells, how many it has."""
    return json.dumps({"planes": planes, "provenance": dict(text)}, indent=1).encode()


def _write_csv(tables: Sequence[Mapping[str, npt.NDArray[Any]]], text: Mapping[str, str] | None) -> bytes:
    """Tables of the same columns below each other."""
    columns = tables[0]
    # as columns, for a comment line would be a row to most readers
    constant = [(key.removeprefix("X-").lower().replace("-", "_"), value) for key, value in (text or {}).items()]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*columns, *(key for key, _ in constant)])
    for table in tables:
        rows = zip(*(table[name].tolist() for name in columns), strict=True)
        writer.writerows([*row, *(value for _, value in constant)] for row in rows)
    return buffer.getvalue().encode()


def _mean_intensity(labels: Labels, plane: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The mean by label over finite pixels, NaN where there are none; by bands of rows, so that memory stays small."""
    length = int(labels.max(initial=0)) + 1
    sums, counts = np.zeros(length), np.zeros(length)
    for band in cut_rows(labels.shape, BAND_PX):
        numbers = labels[band].ravel()
        values = plane[band].ravel().astype(np.float64)
        finite = np.isfinite(values)
        sums += np.bincount(numbers[finite], weights=values[finite], minlength=length)
        counts += np.bincount(numbers[finite], minlength=length)
    means: npt.NDArray[np.float64] = np.divide(sums, counts, out=np.full(length, np.nan), where=counts > 0)
    return means


def write_zip(
    files: Mapping[str, bytes],
    text: Mapping[str, str] | None = None,
    comments: Mapping[str, Mapping[str, str]] | None = None,
) -> bytes:
    """A zip with these files in this order. What is compressed already is stored.

    Args:
        files: by name.
        text: becomes its comment, a line `key=value` an entry.
        comments: likewise of single files, by name.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.comment = _to_comment(text or {})
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = 0o644 << 16
            plain = name.endswith((".geojson", ".csv", ".json", ".roi"))
            entry.compress_type = zipfile.ZIP_DEFLATED if plain else zipfile.ZIP_STORED
            entry.comment = _to_comment((comments or {}).get(name, {}))
            archive.writestr(entry, data)
    return buffer.getvalue()


def _to_comment(text: Mapping[str, str]) -> bytes:
    return "\n".join(f"{key}={value}" for key, value in text.items()).encode()


def _geometry(outline: Outline) -> dict[str, Any]:
    # GeoJSON's rings repeat their first corner at the end
    polygons = [[np.concatenate([ring, ring[:1]]).tolist() for ring in polygon] for polygon in outline.polygons]
    if len(polygons) == 1:
        return {"type": "Polygon", "coordinates": polygons[0]}
    return {"type": "MultiPolygon", "coordinates": polygons}


def _roi(outline: Outline, name: str) -> roifile.ImagejRoi:
    rings = [ring for polygon in outline.polygons for ring in polygon]
    corners = np.concatenate(rings)
    left, top = corners.min(axis=0).tolist()
    right, bottom = corners.max(axis=0).tolist()
    if len(rings) == 1:
        roi = roifile.ImagejRoi.frompoints(rings[0], name=name)
        # what ImageJ's own wand makes: the corners are pixel corners
        roi.roitype = roifile.ROI_TYPE.TRACED
    else:
        roi = roifile.ImagejRoi(roitype=roifile.ROI_TYPE.RECT, name=name, version=227)
        roi.multi_coordinates = _path(rings)
        roi.shape_roi_size = roi.multi_coordinates.size
    roi.left, roi.top, roi.right, roi.bottom = left, top, right, bottom
    return roi


def _path(rings: list[Ring]) -> npt.NDArray[np.float32]:
    """Java's path segments: move to the first corner (0), lines to the others (1), close (4); filled by odd winding."""
    segments: list[float] = []
    for ring in rings:
        for index, (x, y) in enumerate(ring.tolist()):
            segments += [float(index > 0), x, y]
        segments.append(4.0)
    return np.array(segments, dtype=np.float32)
