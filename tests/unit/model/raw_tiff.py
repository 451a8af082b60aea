"""TIFF put together tag by tag, for kinds that no library here writes: microscopes', and odd numbers of bits."""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[Any]
# An entry of a page: its type in TIFF, how many values, and these as they stand in the file.
Entry = tuple[int, int, bytes]
BYTE, ASCII, SHORT, LONG, RATIONAL = 1, 2, 3, 4, 5


def short(*values: int, order: str = "<") -> Entry:
    """16-bit values."""
    return SHORT, len(values), struct.pack(f"{order}{len(values)}H", *values)


def long(*values: int, order: str = "<") -> Entry:
    """32-bit values."""
    return LONG, len(values), struct.pack(f"{order}{len(values)}I", *values)


def raw_tiff(*pages: tuple[Mapping[int, Entry], Sequence[bytes]], preamble: bytes = b"", order: str = "<") -> bytes:
    """A classic TIFF.

    Args:
        pages: the tags of each, without those of the strips, and its strips; more bytes than a strip should have may
            follow in the last one.
        preamble: what stands at offset 8, for tags that point there.
        order: of bytes, `<` or `>`.
    """
    data = bytearray((b"II*\0" if order == "<" else b"MM\0*") + bytes(4) + preamble)
    link = 4
    for tags, strips in pages:
        at = []
        for strip in strips:
            data += bytes(-len(data) % 4)
            at.append(len(data))
            data += strip
        entries = dict(tags) | {273: long(*at, order=order)}
        entries.setdefault(279, long(*map(len, strips), order=order))
        places = {}
        for code, (_, _, value) in entries.items():
            if len(value) > 4:
                data += bytes(-len(data) % 4)
                places[code] = len(data)
                data += value
        data += bytes(-len(data) % 4)
        struct.pack_into(f"{order}I", data, link, len(data))
        data += struct.pack(f"{order}H", len(entries))
        for code, (kind, count, value) in sorted(entries.items()):
            inline = struct.pack(f"{order}I", places[code]) if code in places else value.ljust(4, b"\0")
            data += struct.pack(f"{order}HHI", code, kind, count) + inline
        link = len(data)
        data += bytes(4)
    return bytes(data)


def packed(
    values: Pixels, bits: int, *, order: str = "<", photometric: int = 1, palette: Pixels | None = None
) -> bytes:
    """One strip of (H, W) values, `bits` of each, rows filled up to whole bytes."""
    height, width = values.shape
    if bits == 8 * values.dtype.itemsize:
        strip = values.astype(values.dtype.newbyteorder(order)).tobytes()  # type: ignore[arg-type]
    else:
        spread = values[..., None] >> np.arange(bits - 1, -1, -1) & 1
        strip = np.packbits(spread.reshape(height, -1).astype(np.uint8), axis=1).tobytes()
    tags = {
        256: short(width, order=order), 257: short(height, order=order), 258: short(bits, order=order),
        259: short(1, order=order), 262: short(photometric, order=order), 277: short(1, order=order),
        278: short(height, order=order),
    }  # fmt: skip
    if palette is not None:
        tags[320] = short(*palette.ravel().tolist(), order=order)
    return raw_tiff((tags, [strip]), order=order)


def lsm(stack: Pixels, *, scan: int, sizes: Mapping[str, int], voxel_um: tuple[float, float, float]) -> bytes:
    """Zeiss' LSM as its 4.0 writes it: a page a plane, its channels in strips of their own, each with a thumbnail.

    Args:
        stack: (planes, C, H, W); more than one channel is called RGB, as LSM does.
        scan: ScanType; 0 is a stack of depths, 3 one of times, 6 one of both.
        sizes: by letter: Z, C, T.
        voxel_um: width, height, depth.
    """
    n_planes, n_channels, height, width = stack.shape
    thumbnail = np.zeros((8, 8, 3), np.uint8)
    info = struct.pack(
        "<Iiiiiiiiii3d3dHHI",
        67127628, 220, width, height, sizes.get("Z", 1), n_channels, sizes.get("T", 1), stack.dtype.itemsize, 8, 8,
        *(length * 1e-6 for length in voxel_um), 0, 0, 0, scan, 0, 0,
    ).ljust(220, b"\0")  # fmt: skip
    pages: list[tuple[Mapping[int, Entry], Sequence[bytes]]] = []
    for number, plane in enumerate(stack):
        strips = [channel.astype(channel.dtype.newbyteorder("<")).tobytes() for channel in plane]
        tags = {
            254: long(0), 256: long(width), 257: long(height), 258: short(*[8 * stack.dtype.itemsize] * n_channels),
            259: short(1), 262: short(2 if n_channels > 1 else 1), 277: short(n_channels), 284: short(2),
        }  # fmt: skip
        if n_channels == 2:  # what would fit into the entry stands elsewhere all the same
            tags[258] = SHORT, 2, tags[258][2].ljust(8, b"\0")
        if number == 0:
            tags[34412] = BYTE, len(info), info
        pages.append((tags, strips))
        small = {254: long(1), 256: long(8), 257: long(8), 258: short(8, 8, 8), 259: short(1), 262: short(2),
                 277: short(3), 284: short(1)}  # fmt: skip
        pages.append((small, [thumbnail.tobytes()]))
    assert n_planes == sizes.get("Z", 1) * sizes.get("T", 1)
    return raw_tiff(*pages)


def stk(stack: Pixels, *, z_um: float = 0, interval_ms: int = 0, pixel_um: float | None = None) -> bytes:
    """MetaMorph's STK: one page, the pixels of all planes after each other, and what differs in the UIC tags."""
    n_planes, height, width = stack.shape
    units = b"um\0"
    preamble = struct.pack("<4I", round((pixel_um or 1) * 1000), 1000, round((pixel_um or 1) * 1000), 1000)
    preamble += struct.pack("<I", len(units)) + units
    first = [(3, 0 if pixel_um is None else 1), (4, 8), (5, 16), (6, 24)]
    planes = b"".join(
        struct.pack("<6I", round(z_um * 1000), 1000, 2_459_000, 1000 + index * interval_ms, 2_459_000, 1000)
        for index in range(n_planes)
    )
    tags = {
        256: long(width), 257: long(height), 258: short(8 * stack.dtype.itemsize), 259: short(1), 262: short(1),
        277: short(1), 278: short(height), 279: long(stack[0].nbytes),
        33628: (LONG, len(first), b"".join(struct.pack("<II", *each) for each in first)),
        33629: (RATIONAL, n_planes, planes),
    }  # fmt: skip
    return raw_tiff((tags, [stack.astype(stack.dtype.newbyteorder("<")).tobytes()]), preamble=preamble.ljust(64, b"\0"))
