import io
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as PillowImage

from model.images import to_display
from tests.e2e.kit import ServerProcess, decode, draw_cells, promise_png, to_png
from tests.files import by_tifffile

GREY = draw_cells(60, 80, 3)
COLOUR = np.stack([GREY, GREY // 2, 255 - GREY], axis=-1)


def post(server: ServerProcess, data: bytes, **query: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/preview", files={"file": ("x", data)}, params=query, timeout=60)


IMAGES: dict[str, tuple[bytes, npt.NDArray[Any]]] = {
    "grey": (to_png(GREY), GREY),
    "16 bits": (by_tifffile(GREY.astype(np.uint16) * 200), GREY.astype(np.uint16) * 200),
    "float": (by_tifffile(GREY.astype(np.float32) / 255), GREY.astype(np.float32) / 255),
    "colour": (by_tifffile(COLOUR, photometric="rgb"), COLOUR),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_a_picture_comes_as_8_bit_rgb_of_its_own_size(server: ServerProcess, kind: str) -> None:
    data, image = IMAGES[kind]
    answer = post(server, data)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert "decode;dur=" in answer.headers["server-timing"]
    assert np.array_equal(decode(answer.content)[:, :, ::-1], to_display(image))


def test_an_orientation_in_the_metadata_is_not_applied_just_as_in_the_mask(server: ServerProcess) -> None:
    exif = PillowImage.Exif()
    exif[0x0112] = 6  # turned by a quarter
    buffer = io.BytesIO()
    PillowImage.fromarray(GREY).save(buffer, "JPEG", exif=exif)
    assert decode(post(server, buffer.getvalue()).content).shape == (60, 80, 3)


def test_a_stack_is_asked_about_and_a_page_of_it_shown(server: ServerProcess) -> None:
    stack = np.stack([GREY, GREY[::-1]])
    data = by_tifffile(stack, photometric="minisblack")
    asked = post(server, data)
    assert (asked.status_code, asked.json()["code"]) == (422, "ambiguous_axes")
    assert np.array_equal(decode(post(server, data, page=1).content)[:, :, 0], to_display(stack[1])[:, :, 0])
    assert post(server, data, page=2).json()["code"] == "unsupported_image"


def test_it_refuses_what_segment_refuses(server: ServerProcess) -> None:
    for data, status, code in (
        (b"hello", 415, "undecodable_image"),
        (promise_png(9000, 9000), 413, "image_too_large"),
        (b"", 415, "undecodable_image"),
    ):
        answer = post(server, data)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    for query in ({"threshold": 0.5}, {"page": -1}, {"model": "other"}):
        assert post(server, to_png(GREY), **query).json()["code"] == "invalid_parameter"
    assert httpx.post(f"{server.url}/preview", timeout=60).json()["code"] == "malformed_request"
    assert httpx.get(f"{server.url}/health", timeout=60).json()["queue"]["requests"] == 0
