"""TIFF by tifffile: which planes and axes a file has, how large its pixels are, and one plane at a time."""

import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from model.errors import AmbiguousAxesError, ImageError, ImageTooLargeError, UndecodableImageError
from model.source import (
    MAX_BYTES_A_PIXEL,
    MAX_PLANES,
    ArrayStore,
    Contents,
    PixelSize,
    PlaneStore,
    Selection,
    check_plane,
    check_size,
    fit_axes,
)
from model.types import Image

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_JPEG: tuple[int, ...] = (tifffile.COMPRESSION.JPEG, tifffile.COMPRESSION.OJPEG)
_PICTURES_IN_TIFF: tuple[int, ...] = (
    *_JPEG,
    tifffile.COMPRESSION.WEBP,
    tifffile.COMPRESSION.JPEG2000,
    tifffile.COMPRESSION.APERIO_JP2000_RGB,
)
# More tiles than these, each of less than 8 x 8 px, are no way to store an image (TIFF asks for sides of 16).
MANY_TILES, SMALLEST_TILE_PX = 65_536, 64
# Those whose memory is bounded by the size of the tile, or can be checked (_check_segments).
COMPRESSIONS: tuple[int, ...] = (
    *_PICTURES_IN_TIFF,
    tifffile.COMPRESSION.NONE,
    tifffile.COMPRESSION.LZW,
    tifffile.COMPRESSION.PACKBITS,
    tifffile.COMPRESSION.ADOBE_DEFLATE,
    tifffile.COMPRESSION.DEFLATE,
    tifffile.COMPRESSION.LZMA,
    tifffile.COMPRESSION.ZSTD,
    tifffile.COMPRESSION.CCITTRLE,
    tifffile.COMPRESSION.CCITT_T4,
    tifffile.COMPRESSION.CCITT_T6,
)
_TYPE_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}  # others: 1
MAX_XML_CHARS = 2**24  # a file of the most planes, each described at length, has half of it
# Pictures that slide scanners keep beside the slide.
_BESIDES = ("Thumbnail", "Label", "Macro", "Map")

_UM = {
    "pm": 1e-6, "å": 1e-4, "angstrom": 1e-4, "nm": 1e-3, "nanometer": 1e-3, "µm": 1.0, "um": 1.0, "micron": 1.0,
    "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0, "mm": 1e3, "millimeter": 1e3, "cm": 1e4, "centimeter": 1e4,
    "dm": 1e5, "m": 1e6, "meter": 1e6, "in": 25_400.0, "inch": 25_400.0,
}  # fmt: skip
_SECONDS = {
    "ns": 1e-9,
    "µs": 1e-6,
    "us": 1e-6,
    "ms": 1e-3,
    "msec": 1e-3,
    "s": 1.0,
    "sec": 1.0,
    "min": 60.0,
    "h": 3600.0,
}
# The tags of plain TIFF say the dots of a screen or printer as often as a length. No screen or printer is as fine as
# 2540 dots an inch, and hardly a camera on a microscope is coarser.
COARSEST_UM = 10.0
# Strips and tiles of more rows than this are not worth unpacking for a part of them.
MAX_SEGMENT_ROWS = 1024


@dataclass(frozen=True)
class _Opened:
    """The planes of a series, the axes on which they lie, and all its axes."""

    axes: str
    sizes: tuple[int, ...]
    full_axes: str
    store: PlaneStore

    @property
    def n_planes(self) -> int:
        return math.prod(self.sizes)


def open_tiff(data: bytes, selection: Selection, *, max_pixels: int) -> Contents:
    """Look into a TIFF; its pixels stay where they are.

    Axes, channel names and pixel size come from OME-XML, the description of ImageJ or tifffile, or those of microscopes
    and slide scanners that tifffile knows. Samples of a pixel that are neither colours nor alpha are channels.
    Thumbnails, labels of slides and masks of transparency are no planes; the smaller pictures of a pyramid are levels.

    Raises:
        AmbiguousAxesError: `selection.axes` does not fit the file.
        ImageError: no such level, or not a file that is read.
    """
    _check_directories(data)
    # Of the formats that spread an image over several files only what is in this one is read: a path that an upload
    # names is not to be opened.
    tiff = tifffile.TiffFile(io.BytesIO(data), _multifile=False, is_mmstack=False, is_ndtiff=False)
    main = _main_series(tiff)
    doubtful, one_pyramid = _doubtful_levels(main), len(main) == 1
    if selection.level == 0 and doubtful:  # who names another level says that it is a pyramid
        main = _apart(main)
    series = [_at_level(each, selection.level) for each in main]
    n_planes = sum(each.size // max(each.keyframe.imagelength * each.keyframe.imagewidth, 1) for each in series)
    if n_planes > MAX_PLANES:
        raise ImageTooLargeError(f"a TIFF of more than {MAX_PLANES:,} planes")
    alike = len({(each.axes, each.shape, each.dtype, each.keyframe.photometric) for each in series}) == 1
    if selection.axes is not None and not alike:
        raise AmbiguousAxesError(f"axes={selection.axes} is for one array; this is a TIFF with {len(series)} images")
    first = series[0]
    opened = [_open_series(each, data, selection.axes, max_pixels, tiff) for each in series]
    one, store = opened[0], opened[0].store
    axes, sizes = one.axes, one.sizes
    found = f"TIFF with axes {first.axes} of shape {first.shape}"
    if len(series) > 1:
        found = f"TIFF with {len(series)} images"
        if doubtful and one_pyramid:
            found += (
                ", which may be the levels of a pyramid (page=0 is its full resolution, "
                f"level={doubtful} a smaller one) or pictures of their own"
            )
        store = _SeveralStores(opened, tiff)
        axes, sizes = "I", (sum(each.n_planes for each in opened),)
        if alike:
            axes, sizes = f"I{one.axes}", (len(series), *one.sizes)
    return Contents(
        "TIFF",
        found,
        axes,
        sizes,
        store,
        full_axes=one.full_axes if len(series) == 1 else "",
        pixel_size=_scale(_read_pixel_size(tiff), series[0], main[0]),
        channel_names=_read_channel_names(tiff, sizes[axes.index("C")]) if "C" in axes else (),
    )


def _at_level(series: tifffile.TiffPageSeries, level: int) -> tifffile.TiffPageSeries:
    n_levels = len(series.levels)
    if not 0 <= level < n_levels:
        allowed = "level 0 alone" if n_levels == 1 else f"levels 0 to {n_levels - 1}"
        raise ImageError(f"level {level}; the file has {allowed}")
    return series.levels[level]


def _main_series(tiff: tifffile.TiffFile) -> list[tifffile.TiffPageSeries]:
    """The images in the file but for thumbnails and masks of transparency."""
    if tiff.is_ome:
        try:
            pixels = _ome_pixels(tiff)
        except ElementTree.ParseError:
            tiff.is_ome = False  # the pages speak for themselves
        else:
            if sum(math.prod(int(each.get(f"Size{axis}", 1)) for axis in "CZT") for each in pixels) > MAX_PLANES:
                raise ImageTooLargeError(f"a TIFF of more than {MAX_PLANES:,} planes, as its OME-XML says")
    main = [each for each in tiff.series if not each.keyframe.subfiletype & 0b101 and each.name not in _BESIDES]
    if not main:
        raise UndecodableImageError("the TIFF holds no image")
    return main


def _doubtful_levels(main: Sequence[tifffile.TiffPageSeries]) -> int:
    """The first level of a pyramid that may be none: a page of a size that fits, and that nothing else says; 0 if none.

    Formats of slide scanners have rules of their own, and what lies below a page belongs to it.
    """
    return next((number for each in main for number, _ in _unnamed_levels(each)), 0)


def _unnamed_levels(series: tifffile.TiffPageSeries) -> list[tuple[int, tifffile.TiffPageSeries]]:
    """The levels below the first that nothing in the file calls so, with their numbers."""
    if series.kind != "generic":
        return []
    levels = list(enumerate(series.levels))[1:]
    return [(number, level) for number, level in levels if not (level.keyframe.is_subifd or level.keyframe.is_reduced)]


def _apart(main: Sequence[tifffile.TiffPageSeries]) -> list[tifffile.TiffPageSeries]:
    """Series of which those levels that nothing calls so are series of their own, in the order of the file."""
    found = list(main)
    for each in main:
        doubtful = [level for _, level in _unnamed_levels(each)]
        each.levels[:] = [level for level in each.levels if level not in doubtful]
        found += doubtful
    return sorted(found, key=lambda each: each.keyframe.index)


def _ome_pixels(tiff: tifffile.TiffFile) -> list[ElementTree.Element]:
    xml = tiff.pages.first.description
    if len(xml) > MAX_XML_CHARS:
        raise ImageTooLargeError(f"OME-XML of {len(xml):,} characters; at most {MAX_XML_CHARS:,}")
    if "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        raise UndecodableImageError("OME-XML with a document type or entities, which none needs, is not read")
    return [element for element in ElementTree.fromstring(xml).iter() if element.tag.endswith("}Pixels")]


def _open_series(
    series: tifffile.TiffPageSeries, data: bytes, given: str | None, max_pixels: int, tiff: tifffile.TiffFile
) -> _Opened:
    """Its planes, and the axes on which they lie."""
    page = series.keyframe
    _check_kind(page)
    if page.imagedepth > 1:
        raise AmbiguousAxesError(f"a TIFF volume {page.imagedepth} px deep in one page; one page a plane is needed")
    axes, sizes = series.axes, series.shape
    # a page of Zeiss' LSM holds the channels of its plane as samples, which it calls RGB, and tifffile C
    channels_in_page = tiff.is_lsm and page.samplesperpixel > 1 and "C" in axes and "S" not in axes
    is_colour = _is_colour(page) and not channels_in_page
    letters = axes
    if given is not None:
        found = f"TIFF with axes {axes} of shape {sizes}"
        all_axes, all_sizes = series.get_axes(False), series.get_shape(False)  # those of length 1 too
        if all_axes.endswith("S") and all_sizes[-1] == 1 and "S" not in given.upper():  # grey, as nobody would say
            all_axes, all_sizes = all_axes[:-1], all_sizes[:-1]
        if len(sizes) != len(given) == len(all_sizes):
            axes, sizes = all_axes, all_sizes
        letters = fit_axes(given, sizes, found)
    # the pages' own axes come last: Y, X and the samples
    inner = [axis for axis in ("Y", "X", "S") if axis in axes]
    in_place = (
        all(axes.count(axis) == 1 for axis in inner)
        and sorted(axes[len(axes) - len(inner) :]) == sorted(inner)
        and [sizes[axes.index("Y")], sizes[axes.index("X")]] == [page.imagelength, page.imagewidth]
        and all(letters[axes.index(axis)] == axis for axis in "YX")
        and ("S" not in letters or letters.index("S") == axes.find("S"))
    )
    if not in_place:
        dtype = np.dtype(series.dtype)

        def load() -> npt.NDArray[Any]:
            if math.prod(sizes) * dtype.itemsize > max_pixels * MAX_BYTES_A_PIXEL:
                raise ImageTooLargeError(f"its axes in this order need all of it at once: {math.prod(sizes):,} values")
            for each in series.pages:
                if each is None:
                    raise ImageError("a plane is missing from the file")
                _check_segments(each, len(data))
            return np.asarray(series.asarray()).reshape(sizes)

        array = ArrayStore(load, letters, sizes, dtype)
        return _Opened(array.outer_axes, array.outer_sizes, letters, _Closing(array, tiff))
    sample_axis = "C" if channels_in_page else "S"
    inside = {"Y", "X", sample_axis}
    outer = [(letter, size) for letter, axis, size in zip(letters, axes, sizes, strict=True) if axis not in inside]
    samples = page.samplesperpixel
    sample_letter = letters[axes.index(sample_axis)] if sample_axis in axes else None
    if given is not None and sample_letter == "S" and samples > 1:
        if samples not in (3, 4):
            raise AmbiguousAxesError(f"axes={given}: S is the axis of colour, 3 or 4 long, and not {samples}")
        is_colour = True
    elif given is not None and sample_letter is not None:
        is_colour = False
    # writers call a fourth sample alpha without being asked; who says that the samples are channels means all of them
    said = given is not None and sample_letter not in (None, "S")
    first_extra = samples - len(page.extrasamples)
    alpha = set() if said else {first_extra + i for i, extra in enumerate(page.extrasamples) if int(extra) in (1, 2)}
    # samples beside each other that are neither colours nor alpha are channels, each a plane of its own
    channels = (0,) if is_colour else tuple(i for i in range(samples) if i not in alpha) or (0,)
    n_channels = len(channels)
    store = _TiffStore(tiff, series, data, channels, is_colour)
    if n_channels > 1:
        letter = "C" if sample_letter in (None, "S") else sample_letter
        taken = any(letter == other for other, _ in outer)
        outer.append(("Q" if taken or letter is None else letter, n_channels))
    outer = [(letter, size) for letter, size in outer if size > 1]
    full = letters.replace("S", "C") if n_channels > 1 and "C" not in letters else letters
    return _Opened("".join(letter for letter, _ in outer), tuple(size for _, size in outer), full, store)


def _is_colour(page: tifffile.TiffPage) -> bool:
    # JPEG's own colours are RGB once decoded
    colour = tifffile.PHOTOMETRIC
    return page.photometric == colour.RGB or (page.photometric == colour.YCBCR and page.compression in _JPEG)


def _check_kind(page: tifffile.TiffPage) -> None:
    """Refuse compressions and colours that are not read."""
    if page.compression not in COMPRESSIONS:
        raise UndecodableImageError(f"TIFF compression {_name(page.compression)} is not read")
    if page.bitspersample == 24 and page.parent.byteorder == ">":
        # tifffile 2026.3 takes the bytes in the wrong order, and says nothing
        raise UndecodableImageError("TIFF of 24 bits a sample, big-endian, is not read; 8, 16 and 32 bits are")
    colour = tifffile.PHOTOMETRIC
    allowed = (colour.MINISBLACK, colour.MINISWHITE, colour.PALETTE, colour.MASK)
    if not _is_colour(page) and page.photometric not in allowed:
        raise UndecodableImageError(f"TIFF colours {_name(page.photometric)} are not read; grey, RGB and palette are")


class _TiffStore:
    """The planes of one series: its pages, and in them the samples that are channels."""

    def __init__(
        self,
        tiff: tifffile.TiffFile,
        series: tifffile.TiffPageSeries,
        data: bytes,
        channels: tuple[int, ...],
        is_colour: bool,
    ) -> None:
        self._tiff, self._series, self._data = tiff, series, data
        self._channels, self._is_colour = channels, is_colour
        page = series.keyframe
        self._page = page
        self._n_in_series = series.size // max(page.imagelength * page.imagewidth * page.samplesperpixel, 1)
        # A colour map in a file of ImageJ's says how to look at grey levels, which are what was measured.
        palette = page.photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None
        self._palette = palette and not tiff.is_imagej
        self._checked = False
        self._part_checked = -1

    def shape(self, index: int) -> tuple[int, int, int]:
        samples = self._page.samplesperpixel if self._is_colour else 3 if self._palette else 1
        return self._page.imagelength, self._page.imagewidth, samples

    def check(self, index: int, max_pixels: int) -> None:
        if self._checked:
            return
        page = self._page
        samples = page.samplesperpixel
        check_size(page.imagelength, page.imagewidth, max_pixels)
        if page.is_tiled:  # each is unpacked whole, however little of it lies in the image
            check_size(page.tilelength, page.tilewidth, max_pixels)
        dtype = None if page.dtype is None else np.dtype(page.dtype)
        check_plane(page.imagelength, page.imagewidth, samples, dtype, max_pixels)
        if self._is_colour and samples not in (3, 4):
            raise AmbiguousAxesError(
                f"{samples} samples a pixel, called RGB; allowed are 3 (RGB) and 4 (RGBA); of channels say axes=YXC"
            )
        if len(self._series) != self._n_in_series and self._contiguous_at() is None:
            # several planes packed into one page are unpacked together
            check_size(page.imagelength * self._n_in_series, page.imagewidth, max_pixels)
        self._checked = True

    def read(self, index: int) -> Image:
        return self.read_rows(index, 0, self._page.imagelength)

    def by_rows(self, index: int) -> bool:
        return self._rows_are_stored() or self._segment_rows() <= MAX_SEGMENT_ROWS

    def read_rows(self, index: int, start: int, stop: int) -> Image:
        page = self._page
        height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
        number, channel = divmod(index, len(self._channels))
        if (start, stop) != (0, height) and self.by_rows(index):
            pixels = self._read_part(number, start, stop).reshape(stop - start, width, samples)
        else:
            pixels = self._read_page(number)
            if samples > 1 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
                pixels = np.moveaxis(pixels.reshape(samples, height, width), 0, -1)
            pixels = pixels.reshape(height, width, samples)[start:stop]
        if not self._is_colour:
            pixels = pixels[:, :, self._channels[channel]]
        if self._palette:
            numbers = pixels.astype(np.uint8) if pixels.dtype == np.bool_ else pixels  # 1 bit
            return np.ascontiguousarray(np.moveaxis(np.asarray(page.colormap), 0, -1)[numbers])
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            pixels = -pixels if pixels.dtype.kind == "f" else ~pixels
        if page.bitspersample < 8 and pixels.dtype == np.uint8:  # 2 or 4 bits to the full range, as in other formats
            top = 2**page.bitspersample - 1
            pixels = (pixels & top) * np.uint8(255 // top)
        return np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))

    def close(self) -> None:
        self._tiff.close()

    def _rows_are_stored(self) -> bool:
        """Whether the rows lie in the file one after another, as they are."""
        page = self._page
        return bool(
            len(self._series) == self._n_in_series
            and page.is_contiguous
            and page.predictor == 1
            and page.fillorder == 1
            and page.bitspersample % 8 == 0
            and (page.samplesperpixel == 1 or page.planarconfig == tifffile.PLANARCONFIG.CONTIG)
        )

    def _segment_rows(self) -> int:
        """How many rows a strip or tile holds; of the whole height where such parts cannot be read alone."""
        page = self._page
        apart = page.samplesperpixel > 1 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE
        if len(self._series) != self._n_in_series or apart or page.imagedepth > 1 or page.jpegheader is not None:
            return max(page.imagelength, MAX_SEGMENT_ROWS + 1)
        return page.tilelength if page.is_tiled else page.rowsperstrip

    def _read_part(self, number: int, start: int, stop: int) -> Image:
        """Rows of a page, from those strips or tiles alone that hold them."""
        page, selected = self._page, self._series[number]
        if selected is None:
            raise ImageError(f"plane {number} is missing from the file")
        if number != self._part_checked:  # once for all rows, for it looks at every strip
            _check_segments(selected, len(self._data))
            self._part_checked = number
        width, samples = page.imagewidth, page.samplesperpixel
        dtype = np.dtype(page.dtype)
        if self._rows_are_stored():
            row = width * samples
            at = selected.dataoffsets[0] + start * row * dtype.itemsize
            stored = dtype.newbyteorder(self._tiff.byteorder)
            return np.frombuffer(self._data, stored, count=(stop - start) * row, offset=at)
        page.init_decode()
        rows = np.zeros((stop - start, width, samples), dtype)
        step = self._segment_rows()
        across = -(-width // page.tilewidth) if page.is_tiled else 1
        for index in range(start // step * across, -(-stop // step) * across):
            at, count = selected.dataoffsets[index], selected.databytecounts[index]
            data = self._data[at : at + count] if count else None
            segment, (_, _, top, left, _), shape = page.decode(data, index, jpegtables=page.jpegtables)
            first, last = max(top, start), min(top + shape[1], stop)
            right = min(left + shape[2], width)
            part = rows[first - start : last - start, left:right]
            part[:] = page.nodata if segment is None else segment[0, first - top : last - top, : right - left]
        return rows

    def _contiguous_at(self) -> int | None:
        """Where the pixels of all planes lie one after another as they are."""
        page = self._page
        if page.compression != tifffile.COMPRESSION.NONE or page.bitspersample % 8 or page.predictor != 1:
            return None
        if page.is_tiled:
            return None
        offset: int | None = self._series.dataoffset
        return offset

    def _read_page(self, number: int) -> Image:
        page = self._page
        if len(self._series) == self._n_in_series:
            selected = self._series[number]
            if selected is None:
                raise ImageError(f"plane {number} is missing from the file")
            _check_segments(selected, len(self._data))
            whole: Image = np.asarray(selected.asarray())
            return whole
        start = self._contiguous_at()
        if start is not None:  # ImageJ and tifffile write one page for a whole stack
            dtype = np.dtype(page.dtype).newbyteorder(self._tiff.byteorder)
            count = page.imagelength * page.imagewidth * page.samplesperpixel
            start += number * count * dtype.itemsize
            end = start + count * dtype.itemsize
            if end > len(self._data):
                raise UndecodableImageError(f"the TIFF is cut short: it needs {end:,} bytes, found {len(self._data):,}")
            stored: Image = np.frombuffer(self._data, dtype, count=count, offset=start)
            return stored
        _check_segments(page, len(self._data))
        planes: Image = np.asarray(self._series.asarray()).reshape(self._n_in_series, *page.shape)
        return np.asarray(planes[number])


class _SeveralStores:
    """The planes of several series, one after the other."""

    def __init__(self, opened: Sequence[_Opened], tiff: tifffile.TiffFile) -> None:
        self._opened, self._tiff = opened, tiff

    def _find(self, index: int) -> tuple[PlaneStore, int]:
        for each in self._opened:
            if index < each.n_planes:
                return each.store, index
            index -= each.n_planes
        raise IndexError(index)

    def shape(self, index: int) -> tuple[int, int, int]:
        store, local = self._find(index)
        return store.shape(local)

    def check(self, index: int, max_pixels: int) -> None:
        store, local = self._find(index)
        store.check(local, max_pixels)

    def read(self, index: int) -> Image:
        store, local = self._find(index)
        return store.read(local)

    def by_rows(self, index: int) -> bool:
        store, local = self._find(index)
        return store.by_rows(local)

    def read_rows(self, index: int, start: int, stop: int) -> Image:
        store, local = self._find(index)
        return store.read_rows(local, start, stop)

    def close(self) -> None:
        self._tiff.close()


@dataclass(frozen=True)
class _Closing:
    """An array's planes, and the file that they come from."""

    array: ArrayStore
    tiff: tifffile.TiffFile

    def shape(self, index: int) -> tuple[int, int, int]:
        return self.array.shape(index)

    def check(self, index: int, max_pixels: int) -> None:
        self.array.check(index, max_pixels)

    def read(self, index: int) -> Image:
        return self.array.read(index)

    def by_rows(self, index: int) -> bool:
        return self.array.by_rows(index)

    def read_rows(self, index: int, start: int, stop: int) -> Image:
        return self.array.read_rows(index, start, stop)

    def close(self) -> None:
        self.array.close()
        self.tiff.close()


# --- pixel size and names -------------------------------------------------------------------------------------------


def _scale(size: PixelSize | None, level: tifffile.TiffPageSeries, full: tifffile.TiffPageSeries) -> PixelSize | None:
    if size is None or level is full:
        return size
    return size.scaled(
        full.keyframe.imagewidth / level.keyframe.imagewidth, full.keyframe.imagelength / level.keyframe.imagelength
    )


def _read_pixel_size(tiff: tifffile.TiffFile) -> PixelSize | None:
    """From the first of OME-XML, the words of ImageJ, LSM, STK or a slide scanner, and the resolution tags."""
    if tiff.is_ome:
        sizes = {_ome_pixel_size(pixels) for pixels in _ome_pixels(tiff)}
        return sizes.pop() if len(sizes) == 1 else None
    lengths = _lengths(tiff.pages.first)
    if tiff.is_imagej:
        about = tiff.imagej_metadata or {}

        def in_um(name: str) -> float | None:  # that of height and depth is written where it is another
            return _um(str(about.get(name, about.get("unit", ""))).replace("\\u00B5", "µ"))  # ImageJ keeps to ASCII

        width, height = in_um("unit"), in_um("yunit")
        if width is None or height is None or lengths is None:
            return None
        return PixelSize(
            lengths[0] * width,
            lengths[1] * height,
            z_um=_scaled(about.get("spacing"), in_um("zunit")),
            frame_s=_scaled(about.get("finterval"), _SECONDS.get(str(about.get("tunit", "s")).strip().lower())),
        )
    if tiff.is_lsm or tiff.is_stk:
        return _lsm_pixel_size(tiff) if tiff.is_lsm else _stk_pixel_size(tiff)
    if tiff.is_svs:
        match = re.search(r"\bMPP *= *([0-9.]+)", tiff.pages.first.description)
        mpp = _positive(match.group(1)) if match else None
        return None if mpp is None else PixelSize(mpp, mpp)
    unit = {2: _UM["inch"], 3: _UM["cm"]}.get(int(tiff.pages.first.resolutionunit))
    if unit is None or lengths is None:
        return None
    x_um, y_um = lengths[0] * unit, lengths[1] * unit
    return PixelSize(x_um, y_um) if max(x_um, y_um) < COARSEST_UM else None


def _lsm_pixel_size(tiff: tifffile.TiffFile) -> PixelSize | None:
    about = tiff.lsm_metadata or {}
    x_um, y_um, z_um = (_scaled(about.get(f"VoxelSize{axis}"), _UM["m"]) for axis in "XYZ")
    if x_um is None or y_um is None:
        return None
    return PixelSize(x_um, y_um, z_um, _positive(about.get("TimeIntervall")))  # the format's own spelling


def _stk_pixel_size(tiff: tifffile.TiffFile) -> PixelSize | None:
    about = tiff.stk_metadata or {}
    unit = _um(str(about.get("CalibrationUnits", "")))
    x_um, y_um = (_scaled(about.get(f"{axis}Calibration"), unit) for axis in "XY")
    if not about.get("SpatialCalibration") or x_um is None or y_um is None:
        return None
    return PixelSize(x_um, y_um)


def _ome_pixel_size(pixels: ElementTree.Element) -> PixelSize | None:
    def length(axis: str) -> float | None:
        return _scaled(pixels.get(f"PhysicalSize{axis}"), _um(pixels.get(f"PhysicalSize{axis}Unit", "µm")))

    x_um, y_um = length("X"), length("Y")
    if x_um is None or y_um is None:
        return None
    frame_s = _scaled(pixels.get("TimeIncrement"), _SECONDS.get(pixels.get("TimeIncrementUnit", "s")))
    return PixelSize(x_um, y_um, length("Z"), frame_s)


def _lengths(page: tifffile.TiffPage) -> tuple[float, float] | None:
    """Width and height of a pixel in the unit that the page's tags speak of."""
    values = []
    for name in ("XResolution", "YResolution"):
        tag = page.tags.get(name)
        pixels, units = tag.value if tag is not None and isinstance(tag.value, tuple) else (0, 1)
        values.append(_positive(units / pixels if pixels else None))
    x, y = values
    return None if x is None or y is None else (x, y)


def _um(unit: str) -> float | None:
    """Micrometres in a unit of length; None for another, such as pixels."""
    return _UM.get(unit.strip().lower().replace("\u03bc", "µ"))


def _scaled(value: object, factor: float | None) -> float | None:
    number = _positive(value)
    return None if number is None or factor is None else number * factor


def _positive(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]  # that it may be no number is what is asked
    except (TypeError, ValueError):
        return None
    return number if 0 < number < math.inf else None


def _read_channel_names(tiff: tifffile.TiffFile, count: int) -> tuple[str, ...]:
    """As many as there are channels, or none; one that the file leaves without a name is called by its number."""
    if tiff.is_ome:
        named = {
            tuple(each.get("Name", "") for each in pixels if each.tag.endswith("}Channel"))
            for pixels in _ome_pixels(tiff)
        }
        names = named.pop() if len(named) == 1 else ()
    elif tiff.is_imagej:  # labels of slices; where there are as many as channels they are theirs
        labels = (tiff.imagej_metadata or {}).get("Labels") or ()
        names = tuple(str(label) for label in ([labels] if isinstance(labels, str) else labels))
    else:
        names = ()
    if len(names) != count or not any(names):
        return ()
    return tuple(name or str(number) for number, name in enumerate(names))


# --- what forbids reading -------------------------------------------------------------------------------------------


def _check_segments(page: tifffile.TiffPage | tifffile.TiffFrame, n_bytes: int) -> None:
    """Refuse a page whose strips or tiles lie beyond the end of the file, or unpack to more than they are to hold."""
    keyframe = page.keyframe
    if keyframe is None:
        raise UndecodableImageError("the TIFF has a page of no known size")
    # tifffile takes its time for each segment that a header speaks of, be it in the file or not
    n_segments, n_known = math.prod(keyframe.chunked), len(page.dataoffsets)
    if n_known < n_segments and not page.is_contiguous:
        raise UndecodableImageError(
            f"the TIFF has {n_segments:,} tiles or strips, and says where {n_known:,} of them are"
        )
    if keyframe.is_tiled and n_segments > MANY_TILES and math.prod(keyframe.chunks) < SMALLEST_TILE_PX:
        raise UndecodableImageError(f"the TIFF has {n_segments:,} tiles of less than {SMALLEST_TILE_PX} pixels")
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        if offset + count > n_bytes:
            raise UndecodableImageError(f"the TIFF is cut short: it needs {offset + count:,} bytes, found {n_bytes:,}")
        if keyframe.compression in _PICTURES_IN_TIFF and count:
            # these have a header of their own, and it is what the decoder sets memory aside by
            page.parent.filehandle.seek(offset)
            segment = io.BytesIO(page.parent.filehandle.read(count))
            try:
                with PillowImage.open(segment, formats=("JPEG", "WEBP", "JPEG2000")) as picture:
                    width, height = picture.size
            except UnidentifiedImageError as error:
                kind = _name(keyframe.compression)
                raise UndecodableImageError(
                    f"a tile or strip of the TIFF holds no {kind} that is read: damaged, or of more than 8 bits"
                ) from error
            allowed = max(keyframe.chunks[-2:]) if keyframe.is_tiled else max(keyframe.shape)
            if max(width, height) > max(allowed, 16):
                raise UndecodableImageError(f"a tile of the TIFF holds {width} x {height} px, more than it should")


def _check_directories(data: bytes) -> None:
    """Walk the pages and those below them: no loops, and no more pages, tags and bytes in tags than an honest file has.

    tifffile takes the word of a file for all of these, and a small one can keep it busy for hours.
    """
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    big = int.from_bytes(data[2:4], order) == 43
    count_size, entry_size, offset_size = (8, 20, 8) if big else (2, 12, 4)

    def number(position: int, size: int) -> int:
        if position + size > len(data):
            raise UndecodableImageError(f"the TIFF is cut short: it needs {position + size:,} bytes, has {len(data):,}")
        return int.from_bytes(data[position : position + size], order)

    def sub_offsets(entry: int, count: int) -> Iterator[int]:
        size = _TYPE_BYTES.get(number(entry + 2, 2), 1)
        at = entry + entry_size - offset_size
        at = at if count * size <= offset_size else number(at, offset_size)
        return (number(at + index * size, size) for index in range(count))

    seen, below, n_tags, tag_bytes = set[int](), list[int](), 0, 0

    def walk(offset: int) -> int:
        """Check one page; returns where the next one is said to be."""
        nonlocal n_tags, tag_bytes
        seen.add(offset)
        n = number(offset, count_size)
        n_tags += n
        end = offset + count_size + n * entry_size
        next_offset = number(end, offset_size)
        if len(seen) > MAX_PLANES or n_tags > MAX_PLANES * 50:
            raise ImageTooLargeError(f"a TIFF of more than {MAX_PLANES:,} pages")
        for entry in range(offset + count_size, end, entry_size):
            count = number(entry + 4, offset_size)
            size = count * _TYPE_BYTES.get(number(entry + 2, 2), 1)
            tag_bytes += size
            if offset_size < size <= len(data):  # of more the limit below speaks
                number(number(entry + entry_size - offset_size, offset_size) + size - 1, 1)
            if number(entry, 2) == 330:  # SubIFDs
                if len(below) + count > MAX_PLANES:
                    raise ImageTooLargeError(f"a TIFF of more than {MAX_PLANES:,} pages")
                below.extend(sub_offsets(entry, count))
        if tag_bytes > 2 * len(data) + 2**16:
            raise UndecodableImageError("the TIFF is damaged: its tags claim more bytes than it has")
        return next_offset

    offset = number(8 if big else 4, offset_size)
    while offset:
        if offset in seen:
            raise UndecodableImageError("the pages of the TIFF form a loop")
        offset = walk(offset)
    while below:  # tifffile reads these one by one, and does not follow them to the next
        offset = below.pop()
        if offset and offset not in seen:
            walk(offset)


def _name(value: object) -> str:
    return getattr(value, "name", None) or str(value)
