"""PNG, JPEG, WebP and BMP, by Pillow for the most part, within limits that are checked before decoding."""

import io
import warnings

import imagecodecs
import numpy as np
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from model.errors import AmbiguousAxesError, ImageError, ImageTooLargeError, UndecodableImageError
from model.png import read_plain_png
from model.source import MAX_PLANES, Contents, Selection, check_size
from model.types import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")

# What people try to send, by bytes that such a file has at a place: for the words of the refusal alone.
_MICROSCOPE = "; save it as TIFF, in Fiji by File, Save As"
_OTHERS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"ZISRAWFILE", f"this is Zeiss' CZI{_MICROSCOPE}"),
    (0, b"\xda\xce\xbe\x0a", f"this is Nikon's ND2{_MICROSCOPE}"),
    (0, b"\x70\0\0\0", f"this may be Leica's LIF{_MICROSCOPE}"),
    (0, b"\xd0\xcf\x11\xe0", f"this may be Olympus' OIB or Zeiss' ZVI{_MICROSCOPE}"),
    (0, b"\x89HDF\r\n\x1a\n", f"this is HDF5, as are Imaris' IMS{_MICROSCOPE}"),
    (128, b"DICM", f"this is DICOM{_MICROSCOPE}"),
    (0, b"GIF8", "this is a GIF, which keeps 256 colours; save it as PNG or TIFF"),
    (0, b"\0\0\0\x0cjP  ", "this is JPEG 2000, which is read inside TIFF alone"),
    (0, b"\0\0\0\x0cJXL ", "this is JPEG XL"),
    (0, b"\xff\x0a", "this is JPEG XL"),
    (4, b"ftyp", "this is HEIC, AVIF or a film"),
    (0, b"%PDF", "this is a PDF"),
    (0, b"PK\x03\x04", "this is a zip, or a document that is one; send the images in it"),
    (0, b"\x1f\x8b", "this is compressed by gzip; send what is in it"),
    (0, b"<", "this is text, such as HTML, SVG or XML"),
)

PillowImage.MAX_IMAGE_PIXELS = None  # the limit of the source is the only one, and applies to every format alike


def open_picture(data: bytes, selection: Selection, *, max_pixels: int) -> Contents:
    """Look into a picture's header.

    1-bit pictures come as 0 and 255, palettes as their colours. Alpha is ignored: what is stored under it counts. It
    stays as a fourth channel in 16-bit PNG, where nothing looks at it. The EXIF orientation is not applied: masks lie
    on the stored pixel grid. The frames of an animation are planes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata that nothing here uses
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            check_size(*_webp_size(data), max_pixels)  # Pillow sets memory aside for two canvases as it opens one
        try:
            picture = PillowImage.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError as error:
            raise UndecodableImageError(
                f"{_describe(data)}; {', '.join(FORMATS)}, TIFF and NPY are read; this starts with {data[:8]!r}"
            ) from error
        # a camera's or telephone's MPO is a JPEG with a preview of itself behind it
        kind = "JPEG" if picture.format == "MPO" else picture.format or ""
        n_frames = 1 if kind == "JPEG" else getattr(picture, "n_frames", 1)
    if n_frames > MAX_PLANES:
        raise ImageTooLargeError(f"{n_frames:,} frames; at most {MAX_PLANES:,}")
    if kind == "PNG" and n_frames > 1 and _is_16_bit_png(data):
        # Pillow cuts colour to 8 bits, and lays one frame over another by what is left of it
        raise UndecodableImageError("an animated PNG of 16 bits is not read, of 8 bits it is; save it as TIFF")
    if selection.level:
        raise ImageError(f"level {selection.level}; a {kind} has level 0 alone")
    found = f"animated {kind}" if n_frames > 1 else kind
    is_grey = _is_grey(picture, data)
    readings = _readings(n_frames, is_grey)
    if selection.axes is not None and selection.axes.upper() not in readings:
        allowed = " or ".join(f"axes={axes}" for axes in readings)
        raise AmbiguousAxesError(f"axes={selection.axes}: a picture of kind {found} has {allowed}")
    letter = "" if n_frames == 1 else (selection.axes or "I")[0].upper()
    sizes = (n_frames,) if letter else ()
    return Contents(
        kind, found, letter, sizes, _PictureStore(picture, kind, n_frames, data, is_grey), full_axes=readings[0]
    )


def _describe(data: bytes) -> str:
    """What a file seems to be that is not read."""
    for at, start, words in _OTHERS:
        if data[at : at + len(start)] == start:
            return words
    return "not an image of a kind that is read, or its header is damaged"


class _PictureStore:
    def __init__(self, picture: PillowImage.Image, kind: str, n_frames: int, data: bytes, is_grey: bool) -> None:
        self._picture, self._kind, self._n_frames, self._data = picture, kind, n_frames, data
        self._grey = is_grey

    def shape(self, index: int) -> tuple[int, int, int]:
        samples = 1 if self._grey else 3
        return self._picture.height, self._picture.width, samples

    def check(self, index: int, max_pixels: int) -> None:
        check_size(self._picture.height, self._picture.width, max_pixels)

    def read(self, index: int) -> Image:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self._kind == "PNG" and self._n_frames == 1:
                plain = read_plain_png(self._data)
                if plain is not None and plain.shape[:2] == (self._picture.height, self._picture.width):
                    return plain
                if _is_16_bit_png(self._data):
                    return self._read_16_bit_png()  # Pillow would cut colour to 8 bits
            self._picture.seek(index)
            return np.asarray(self._picture.convert("L" if self._picture.mode in ("1", "L", "LA") else "RGB"))

    def by_rows(self, index: int) -> bool:
        return False

    def read_rows(self, index: int, start: int, stop: int) -> Image:
        return self.read(index)[start:stop]

    def close(self) -> None:
        self._picture.close()

    def _read_16_bit_png(self) -> Image:
        try:
            pixels: Image = np.asarray(imagecodecs.png_decode(self._data))
        except imagecodecs.PngError as error:
            raise UndecodableImageError("the PNG is damaged, or a part of it is missing") from error
        if pixels.ndim == 3 and pixels.shape[2] in (1, 2):  # grey, or grey and alpha
            pixels = pixels[:, :, 0]
        if pixels.shape[:2] != (self._picture.height, self._picture.width):
            raise UndecodableImageError("the PNG has two headers that contradict each other")
        return np.ascontiguousarray(pixels)


def _is_grey(picture: PillowImage.Image, data: bytes) -> bool:
    if picture.format == "PNG" and _is_16_bit_png(data):
        return data[25] in (0, 4)  # the colour type; Pillow calls grey with alpha RGBA
    return picture.mode in ("1", "L", "LA") or picture.mode.startswith(("I", "F"))


def _readings(n_frames: int, is_grey: bool) -> tuple[str, ...]:
    plane = "YX" if is_grey else "YXS"
    return (plane,) if n_frames == 1 else tuple(letter + plane for letter in "ITZC")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Height and width in the first chunk of a WebP file, of whichever of its three kinds; 0, 0 for another."""

    def number(start: int, n_bytes: int) -> int:
        return int.from_bytes(data[start : start + n_bytes], "little")

    kind = data[12:16]
    if kind == b"VP8X":
        return number(27, 3) + 1, number(24, 3) + 1
    if kind == b"VP8L":
        return (number(21, 4) >> 14 & 0x3FFF) + 1, (number(21, 4) & 0x3FFF) + 1
    if kind == b"VP8 ":
        return number(28, 2) & 0x3FFF, number(26, 2) & 0x3FFF
    return 0, 0


def _is_16_bit_png(data: bytes) -> bool:
    """Whether the first chunk says so: after the signature length, IHDR, width, height, bit depth."""
    return len(data) > 24 and data[12:16] == b"IHDR" and data[24] == 16
