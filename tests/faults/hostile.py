"""Hostile files drawn up by hand: bombs, loops, lengths that lie. Each is small to send and costly to believe."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import tifffile
from PIL import Image as PillowImage

from tests.faults.fuzz import make_corpus

PNG = b"\x89PNG\r\n\x1a\n"
MAGIC = (
    PNG, b"\xff\xd8\xff", b"RIFF", b"RIFF\xff\xff\xff\xffWEBP", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"\x93NUMPY",
    b"GIF89a", b"%PDF-1.7", b"PK\x03\x04", b"\x7fELF", b"\0\0\0\x0cjP  \r\n\x87\n", b"<svg>", b"<?xml version='1.0'?>",
)  # fmt: skip
DESCRIPTIONS = (
    "ImageJ=1.53\nimages=2000000000\n", "ImageJ=1.53\nimages=-1\n", "ImageJ=\n", '{"shape": [99999999, 99999999]}',
    '{"shape": [-1]}', "{" * 100_000,
)  # fmt: skip
OME = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
SIDES = ((65_535, 65_535), (1 << 20, 1 << 20), (2**31 - 1, 2**31 - 1), (2**32 - 1, 1), (1, 2**32 - 1), (30_000, 30_000))
# TIFF tags
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, OFFSETS, SAMPLES, ROWS, COUNTS = (
    256, 257, 258, 259, 262, 273, 277, 278, 279,
)  # fmt: skip
DESCRIPTION, SUB_IFDS, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS = 270, 330, 322, 323, 324, 325
SHORT, LONG = 3, 4


def hostile_files() -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each."""
    yield from _nothing()
    yield from _pngs()
    yield from _tiffs()
    yield from _others()


def _nothing() -> Iterator[tuple[str, bytes]]:
    yield "no bytes", b""
    for start in MAGIC:
        yield f"only {start!r}", start
        yield f"{start!r} and zeros", start + bytes(4096)
        yield f"{start!r} and ones", start + b"\xff" * 4096


def _chunk(kind: bytes, data: bytes, *, length: int | None = None, crc: int | None = None) -> bytes:
    said = len(data) if length is None else length
    check = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", said) + kind + data + struct.pack(">I", check)


def _header(width: int, height: int, depth: int = 8, colour: int = 0, interlace: int = 0) -> bytes:
    return _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def _bomb(n_bytes: int) -> bytes:
    """Deflated zeros, a thousandth of the size."""
    squeeze = zlib.compressobj(9)
    block = bytes(1 << 20)
    return b"".join(squeeze.compress(block) for _ in range(n_bytes >> 20)) + squeeze.flush()


def _pngs() -> Iterator[tuple[str, bytes]]:
    end = _chunk(b"IEND", b"")
    little = _chunk(b"IDAT", zlib.compress(bytes(100)))
    for width, height in SIDES:
        for depth, colour in ((1, 0), (8, 2), (16, 6)):
            name = f"PNG that says {width} x {height}, depth {depth}, colour {colour}"
            yield name, PNG + _header(width, height, depth, colour) + little + end
    zeros = _bomb(256 << 20)
    yield "PNG of 256 MiB in one row of IDAT", PNG + _header(100, 100) + _chunk(b"IDAT", zeros) + end
    for kind, head in ((b"zTXt", b"k\0\0"), (b"iCCP", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0")):
        text = _chunk(kind, head + zeros)
        yield f"PNG with a {kind.decode()} bomb", PNG + _header(8, 8) + text + little + end
        yield (
            f"PNG with 200 bombs in {kind.decode()}",
            PNG + _header(8, 8) + _chunk(kind, head + _bomb(1 << 20)) * 200 + end,
        )
    yield "PNG with 20,000 text chunks", PNG + _header(8, 8) + _chunk(b"tEXt", b"k\0v") * 20_000 + little + end
    yield "PNG with 50,000 empty IDATs", PNG + _header(8, 8) + _chunk(b"IDAT", b"") * 50_000 + little + end
    for length in (0, 1, 2**31 - 1, 2**31, 2**32 - 1):
        yield (
            f"PNG whose IDAT says {length} bytes",
            PNG + _header(8, 8) + _chunk(b"IDAT", bytes(20), length=length) + end,
        )
        yield f"PNG whose IHDR says {length} bytes", PNG + _chunk(b"IHDR", bytes(13), length=length) + little + end
    yield "PNG with a wrong checksum", PNG + _header(8, 8) + _chunk(b"IDAT", zlib.compress(bytes(72)), crc=0) + end
    yield "PNG without pixels", PNG + _header(0, 0) + little + end
    yield "PNG with two headers", PNG + _header(8, 8) + _header(60_000, 60_000) + little + end
    yield "PNG without data", PNG + _header(8, 8) + end
    yield "PNG with a palette of no colour", PNG + _header(8, 8, 8, 3) + _chunk(b"PLTE", b"") + little + end
    for depth, colour, interlace in ((3, 0, 0), (8, 5, 0), (16, 3, 0), (0, 0, 0), (8, 0, 7), (255, 255, 255)):
        name = f"PNG of depth {depth}, colour {colour}, interlace {interlace}"
        yield name, PNG + _header(8, 8, depth, colour, interlace) + little + end
    frames = _chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    yield "APNG of two thousand million frames", PNG + _header(8, 8) + frames + little + end


def _tiff(tags: dict[int, tuple[int, int, int]], *, order: str = "<", then: int = 0, data: bytes = b"") -> bytes:
    """A TIFF of one directory: tag to type, count, value; its data begin behind the directory."""
    directory = struct.pack(f"{order}H", len(tags))
    for tag, (kind, count, value) in sorted(tags.items()):
        packed = (
            struct.pack(f"{order}HH", value, 0) if kind == SHORT and count == 1 else struct.pack(f"{order}I", value)
        )
        directory += struct.pack(f"{order}HHI", tag, kind, count) + packed
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return head + directory + struct.pack(f"{order}I", then) + data


def _grey(width: int, height: int, **other: tuple[int, int, int]) -> dict[int, tuple[int, int, int]]:
    tags = {
        WIDTH: (LONG, 1, width), HEIGHT: (LONG, 1, height), BITS: (SHORT, 1, 8), COMPRESSION: (SHORT, 1, 1),
        PHOTOMETRIC: (SHORT, 1, 1), OFFSETS: (LONG, 1, 200), SAMPLES: (SHORT, 1, 1), ROWS: (LONG, 1, height),
        COUNTS: (LONG, 1, min(width * height, 2**32 - 1)),
    }  # fmt: skip
    return tags | {int(tag.strip("t")): entry for tag, entry in other.items()}


def _tiffs() -> Iterator[tuple[str, bytes]]:
    for order in "<>":
        for width, height in SIDES:
            yield (
                f"TIFF that says {width} x {height} {order}",
                _tiff(_grey(width, height), order=order, data=bytes(1000)),
            )
        yield f"TIFF whose next directory is itself {order}", _tiff(_grey(8, 8), order=order, then=8, data=bytes(200))
        yield (
            f"TIFF whose directory lies outside {order}",
            _tiff(_grey(8, 8), order=order, then=2**32 - 1, data=bytes(200)),
        )
        yield (
            f"TIFF whose sub-directory is itself {order}",
            _tiff(_grey(8, 8) | {SUB_IFDS: (LONG, 1, 8)}, order=order, data=bytes(200)),
        )
        ring = bytearray(_tiff(_grey(8, 8), order=order, then=300, data=bytes(500)))
        ring[300:302] = struct.pack(f"{order}H", 0)
        ring[302:306] = struct.pack(f"{order}I", 8)
        yield f"TIFF of two directories in a ring {order}", bytes(ring)
        for tag in (WIDTH, BITS, OFFSETS, COUNTS, DESCRIPTION, SAMPLES):
            for count in (0, 2**16, 2**32 - 1):
                tags = _grey(64, 64) | {tag: (LONG, count, 8)}
                yield f"TIFF with {count} values of tag {tag} {order}", _tiff(tags, order=order, data=bytes(5000))
    for samples in (0, 5, 1000, 65_535):
        yield f"TIFF of {samples} samples", _tiff(_grey(64, 64) | {SAMPLES: (SHORT, 1, samples)}, data=bytes(5000))
    for bits in (0, 3, 7, 33, 64, 1000, 65_535):
        yield f"TIFF of {bits} bits", _tiff(_grey(64, 64) | {BITS: (SHORT, 1, bits)}, data=bytes(5000))
    for compression in (0, 2, 5, 7, 8, 32_773, 34_712, 34_925, 50_000, 50_001, 65_535):
        tags = _grey(1000, 1000) | {COMPRESSION: (SHORT, 1, compression), COUNTS: (LONG, 1, 4000)}
        yield f"TIFF of zeros said to be of compression {compression}", _tiff(tags, data=bytes(5000))
    tiles = {
        TILE_WIDTH: (LONG, 1, 2**31),
        TILE_HEIGHT: (LONG, 1, 2**31),
        TILE_OFFSETS: (LONG, 1, 200),
        TILE_COUNTS: (LONG, 1, 9),
    }
    yield "TIFF of one giant tile", _tiff(_grey(64, 64) | tiles, data=bytes(5000))
    tiles = {
        TILE_WIDTH: (LONG, 1, 1),
        TILE_HEIGHT: (LONG, 1, 1),
        TILE_OFFSETS: (LONG, 1, 200),
        TILE_COUNTS: (LONG, 1, 9),
    }
    yield "TIFF of a million tiles of one pixel", _tiff(_grey(1000, 1000) | tiles, data=bytes(5000))
    bomb = _bomb(256 << 20)
    tags = _grey(1000, 1000) | {COMPRESSION: (SHORT, 1, 8), COUNTS: (LONG, 1, len(bomb))}
    yield "TIFF whose megapixel inflates to 256 MiB", _tiff(tags, data=bytes(200 - 8 - 2 - 12 * 9 - 4) + bomb)
    chain = bytearray(b"II*\0" + struct.pack("<I", 8))
    for number in range(60_000):  # empty directories, each with the next
        chain += struct.pack("<HI", 0, 8 + 6 * (number + 1))
    yield "TIFF of 60,000 empty directories", bytes(chain)
    entities = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {name} "{("&" + before + ";") * 10}">' for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    for name, text in (
        ("that laughs a thousand million times", entities + "]><OME>&i;</OME>"),
        ("that reads a file", '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><OME>&f;</OME>'),
        ("cut short", "<OME xmlns='http://www.openmicroscopy.org/Schemas/OME/2016-06'><Image"),
        ("nested 10,000 deep", "<OME>" + "<a>" * 10_000),
        ("of a giant", OME + 'DimensionOrder="XYCZT" Type="uint8" SizeX="2000000000" SizeY="2000000000" SizeC="1" '
         'SizeZ="1" SizeT="1"><TiffData/></Pixels></Image></OME>'),
        ("of files elsewhere", OME + 'DimensionOrder="XYCZT" Type="uint8" SizeX="64" SizeY="64" SizeC="1" SizeZ="2" '
         'SizeT="1"><TiffData IFD="0"><UUID FileName="../../etc/passwd">urn:uuid:0</UUID></TiffData></Pixels></Image>'
         '</OME>'),
    ):  # fmt: skip
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, np.zeros((64, 64), np.uint8), description=text, metadata=None)
        yield f"TIFF with an OME description {name}", buffer.getvalue()
    for text in DESCRIPTIONS:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, np.zeros((64, 64), np.uint8), description=text, metadata=None)
        yield f"TIFF described as {text[:40]!r}", buffer.getvalue()


def _others() -> Iterator[tuple[str, bytes]]:
    corpus = make_corpus()
    jpeg = corpus["jpeg"]
    frame = jpeg.index(b"\xff\xc0") + 5
    for height, width in ((65_500, 65_500), (65_535, 65_535), (0, 0), (65_535, 1)):
        yield f"JPEG that says {width} x {height}", jpeg[:frame] + struct.pack(">HH", height, width) + jpeg[frame + 4 :]
    for length in (0, 1, 2, 65_535):
        yield f"JPEG whose first segment says {length} bytes", jpeg[:4] + struct.pack(">H", length) + jpeg[6:]
    yield "JPEG of 20,000 comments", jpeg[:2] + b"\xff\xfe\x00\x04ab" * 20_000 + jpeg[2:]
    progressive = corpus["jpeg-progressive"]
    scan = progressive.rindex(b"\xff\xda")
    yield "JPEG of 20,000 scans", progressive[:-2] + progressive[scan:-2] * 20_000 + b"\xff\xd9"
    webp = corpus["webp-lossless"]
    for width in (16_383, 16_384):
        bits = (width - 1) | (width - 1) << 14
        yield f"WebP that says {width} x {width}", webp[:21] + struct.pack("<I", bits & 0xFFFFFFFF) + webp[25:]
    for length in (0, 1, 2**31, 2**32 - 1):
        yield f"WebP whose chunk says {length} bytes", webp[:16] + struct.pack("<I", length) + webp[20:]
        yield f"WebP whose file says {length} bytes", webp[:4] + struct.pack("<I", length) + webp[8:]
    frames = [PillowImage.new("RGB", (8, 8), (shade, 0, 0)) for shade in range(200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:])
    yield "WebP of 200 frames", buffer.getvalue()
    bmp = corpus["bmp"]
    for width, height in ((2**31 - 1, 2**31 - 1), (-1, -1), (0, 0), (-(2**31), 1), (40_000, 40_000)):
        yield f"BMP that says {width} x {height}", bmp[:18] + struct.pack("<ii", width, height) + bmp[26:]
    for offset in (0, 14, 2**32 - 1):
        yield f"BMP whose pixels are at {offset}", bmp[:10] + struct.pack("<I", offset) + bmp[14:]
    for bits in (0, 3, 64, 65_535):
        yield f"BMP of {bits} bits", bmp[:28] + struct.pack("<H", bits) + bmp[30:]
    for compression in (1, 2, 3, 4, 5, 99):
        yield f"BMP of compression {compression}", bmp[:30] + struct.pack("<I", compression) + bmp[34:]
    for kind, data in corpus.items():
        yield f"{kind} twice", data + data
        yield f"{kind} with a megabyte behind it", data + b"\xa5" * (1 << 20)
