"""Write PNG, each kind of picture packed in the way that suits it; and read the most usual kind.

A mask is long runs of two values: run lengths alone pack it smaller than the general search, in a quarter of the time.
Labels are runs as well, of many values; a probability or a picture is packed by its differences from the row above.
`bench/codecs.py` measures these against Pillow and OpenCV.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import imagecodecs
import numpy as np
import numpy.typing as npt

from model.bands import cut

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB = 0, 2  # colour types
SAMPLES = {GREY: 1, RGB: 3}
PLAIN_START = SIGNATURE + b"\0\0\0\rIHDR"
HEAD_BYTES = 33  # signature and header chunk
NO_FILTER, UP = 0, 2  # filter types: the bytes as they are, or less those of the row above
# Up to so many bytes a picture is packed at once by libdeflate, which is quicker; beyond, by bands, without a copy.
AT_ONCE_BYTES = 1 << 24
BAND_BYTES = 1 << 22

# Chunks that are looked at before a file is left to others: a few MB in chunks as small as libpng writes them.
MAX_CHUNKS = 512

Content = Literal["mask", "labels", "picture"]


def write_png(
    pixels: npt.NDArray[Any], *, content: Content = "picture", text: Mapping[str, str] | None = None
) -> bytes:
    """PNG of (H, W) bool, uint8, uint16 or int32, or (H, W, 3) uint8 pixels.

    Args:
        pixels: bool becomes 0 and 255 of 8 bits; int32, which may hold 0 to 65535 only, 16 bits.
        content: what it shows; decides how it is packed, not what is read back.
        text: goes into text chunks.

    Raises:
        ValueError: another shape or type.
    """
    grey = pixels.ndim == 2 and pixels.dtype in (np.bool_, np.uint8, np.uint16, np.int32)
    if not (grey or (pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8)) or pixels.size == 0:
        raise ValueError(f"a PNG of shape {pixels.shape} and type {pixels.dtype}; allowed are grey and 8-bit RGB")
    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, min(8 * pixels.itemsize, 16), GREY if grey else RGB, 0, 0, 0)
    chunks = [SIGNATURE, *_chunk(b"IHDR", header)]
    for key, value in (text or {}).items():
        chunks += _text_chunk(key, value)
    for data in _pack(pixels, content):
        chunks += _chunk(b"IDAT", data)
    chunks += _chunk(b"IEND", b"")
    return b"".join(chunks)


def inspect_plain_png(data: bytes) -> tuple[int, int] | None:
    """Height and width, in pixels, of a PNG of the kind that read_plain_png reads; None for whatever else.

    Of what is refused or damaged behind the headers of its chunks it knows nothing. It takes some microseconds.
    """
    chunks = _find_chunks(data)
    if chunks is None:
        return None
    width, height = struct.unpack_from(">II", data, 16)
    return (height, width) if height and width else None


def read_plain_png(data: bytes) -> npt.NDArray[Any] | None:
    """Decode the most usual kind of PNG in less time than libpng takes alone.

    Args:
        data: of a file.

    Returns:
        (H, W) or (H, W, 3), uint8 or uint16; None where it is no PNG of grey or RGB in 8 or 16 bits without
        interlacing, is animated, damaged or larger than AT_ONCE_BYTES: that is for a reader that knows them all.
    """
    parts = _find_chunks(data)
    if parts is None:
        return None
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    unpacked_bytes = height * (1 + width * SAMPLES[colour] * depth // 8)
    if not 0 < unpacked_bytes <= AT_ONCE_BYTES:
        return None
    # libdeflate unpacks in half the time of zlib. What is left, undoing the filters of the rows, is for libpng: it is
    # given the rows in a file that is not packed.
    filtered = np.empty(unpacked_bytes, dtype=np.uint8)
    packed = data[parts[0]] if len(parts) == 1 else b"".join(data[part] for part in parts)
    try:
        unpacked = imagecodecs.deflate_decode(packed, out=filtered)  # type: ignore[arg-type]  # takes any buffer
        if len(unpacked) != unpacked_bytes:
            return None
        stored: bytes = imagecodecs.deflate_encode(filtered, level=0)  # type: ignore[assignment,arg-type]  # any buffer
        chunks = [data[:HEAD_BYTES], *_chunk(b"IDAT", stored), *_chunk(b"IEND", b"")]
        pixels: npt.NDArray[Any] = imagecodecs.png_decode(b"".join(chunks))
    except (imagecodecs.DeflateError, imagecodecs.PngError):
        return None
    return pixels


def _find_chunks(data: bytes) -> list[slice] | None:
    """Where the packed pixels are in a plain PNG; None for whatever else."""
    if not data.startswith(PLAIN_START) or len(data) < HEAD_BYTES:
        return None
    depth, colour, _, _, interlaced, checksum = struct.unpack_from(">BBBBBI", data, 24)
    if depth not in (8, 16) or colour not in SAMPLES or interlaced or zlib.crc32(data[12:29]) != checksum:
        return None
    parts: list[slice] = []
    start = HEAD_BYTES
    for _ in range(MAX_CHUNKS):
        if len(data) < start + 12:
            return None
        n_bytes, kind = struct.unpack_from(">I4s", data, start)
        if kind == b"IEND":
            return parts or None
        if kind in (b"acTL", b"IHDR"):
            return None
        if kind == b"IDAT":
            parts.append(slice(start + 8, start + 8 + n_bytes))
        start += 12 + n_bytes
    return None


def _pack(pixels: npt.NDArray[Any], content: Content) -> Iterator[bytes]:
    """The pixels as one zlib stream, in pieces."""
    filter_type = UP if content == "picture" else NO_FILTER
    row_bytes = 1 + pixels[0].size * min(pixels.itemsize, 2)
    if content != "mask" and pixels.shape[0] * row_bytes <= AT_ONCE_BYTES:
        # level 1 of libdeflate has no lazy search, which differences do not reward and runs of labels do
        level = 1 if content == "picture" else 2
        data = _filtered(pixels, 0, pixels.shape[0], filter_type)
        yield bytes(imagecodecs.deflate_encode(data, level=level))  # type: ignore[arg-type]  # takes any buffer
        return
    strategy = zlib.Z_DEFAULT_STRATEGY if content == "labels" else zlib.Z_RLE
    packer = zlib.compressobj(1, strategy=strategy)
    for band in cut(pixels.shape[0], max(1, BAND_BYTES // row_bytes)):
        packed = packer.compress(_filtered(pixels, band.start, band.stop, filter_type).data)
        if packed:
            yield packed
    yield packer.flush()


def _filtered(pixels: npt.NDArray[Any], top: int, bottom: int, filter_type: int) -> npt.NDArray[np.uint8]:
    """(rows, 1 + bytes of a row): the rows in big-endian order, each behind the number of its filter."""
    band = pixels[max(top - 1, 0) : bottom]
    if band.dtype == np.bool_:
        numbers = np.ascontiguousarray(band).view(np.uint8) * np.uint8(255)
    else:
        numbers = np.ascontiguousarray(band, dtype=np.uint8 if band.dtype == np.uint8 else ">u2")
    rows = numbers.view(np.uint8).reshape(len(band), -1)
    skipped = top - max(top - 1, 0)
    filtered = np.empty((bottom - top, 1 + rows.shape[1]), dtype=np.uint8)
    filtered[:, 0] = filter_type
    if filter_type == UP:
        if skipped == 0:
            filtered[0, 1:] = rows[0]
        np.subtract(rows[1:], rows[:-1], out=filtered[1 - skipped :, 1:])
    else:
        filtered[:, 1:] = rows[skipped:]
    return filtered


def _chunk(kind: bytes, data: bytes) -> tuple[bytes, bytes, bytes]:
    return struct.pack(">I", len(data)) + kind, data, struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def _text_chunk(key: str, value: str) -> tuple[bytes, bytes, bytes]:
    """Latin-1 in a tEXt chunk; what it cannot say as UTF-8 in an iTXt chunk."""
    try:
        return _chunk(b"tEXt", key.encode("latin-1") + b"\0" + value.encode("latin-1"))
    except UnicodeEncodeError:
        return _chunk(b"iTXt", key.encode("latin-1", "replace") + b"\0\0\0\0\0" + value.encode())
