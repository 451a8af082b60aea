import io
import json
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as PillowImage

from model.images import decode_image, encode_labels, encode_mask, encode_probability
from model.outputs import Output, encode_output
from model.segmenter import Segmenter
from tests.e2e.kit import ROOT, ServerProcess, decode, draw_cells, load_reference, promise_png, to_png
from tests.files import by_tifffile

TIMEOUT = httpx.Timeout(120)


def post(server: ServerProcess, data: bytes, name: str = "image.png", **query: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/segment", files={"file": (name, data)}, params=query, timeout=TIMEOUT)


@pytest.fixture(scope="module")
def reference(shared_weights: Path) -> Segmenter:
    return load_reference(shared_weights / "best_model.pth", batch_tiles=4)


def by_pillow(image: npt.NDArray[Any], mode: str, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    PillowImage.fromarray(image).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


GREY = draw_cells(90, 140, 3)
COLOUR = np.stack([GREY, GREY // 2, 255 - GREY], axis=-1)
GREY16 = GREY.astype(np.uint16) * 200
FORMATS: dict[str, Callable[[], bytes]] = {
    "png grey 8 bits": lambda: to_png(GREY),
    "png grey 16 bits": lambda: to_png(GREY16),
    "png rgb": lambda: to_png(COLOUR),
    "png rgba": lambda: by_pillow(COLOUR, "RGBA", "PNG"),
    "png palette": lambda: by_pillow(COLOUR, "P", "PNG"),
    "png 1 bit": lambda: by_pillow(GREY, "1", "PNG"),
    "jpeg grey": lambda: by_pillow(GREY, "L", "JPEG"),
    "jpeg rgb": lambda: by_pillow(COLOUR, "RGB", "JPEG"),
    "bmp": lambda: by_pillow(COLOUR, "RGB", "BMP"),
    "webp": lambda: by_pillow(COLOUR, "RGB", "WEBP", lossless=True),
    "tiff uint8": lambda: by_tifffile(GREY),
    "tiff uint16 deflate": lambda: by_tifffile(GREY16, compression="zlib"),
    "tiff float32": lambda: by_tifffile(GREY.astype(np.float32) / 255),
    "tiff rgb": lambda: by_tifffile(COLOUR, photometric="rgb"),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gets_the_mask_that_the_library_gives(
    server: ServerProcess, reference: Segmenter, kind: str
) -> None:
    data = FORMATS[kind]()
    answer = post(server, data)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    mask = decode(answer.content)
    assert (mask.shape, str(mask.dtype)) == ((90, 140), "uint8")
    assert set(np.unique(mask)) <= {0, 255}
    assert np.array_equal(mask > 0, reference.segment(decode_image(data).pixels).mask())


def test_each_output_is_the_library_s(server: ServerProcess, reference: Segmenter) -> None:
    data = to_png(GREY)
    whole = reference.segment(GREY, threshold=0.4321, min_area_px=7)
    high = 0.999 * float(whole.probability.max())
    expected = reference.segment(GREY, threshold=0.4321, high_threshold=high, min_area_px=7)
    assert 0 < expected.labels().max() < whole.labels().max()
    query: dict[str, Any] = {"threshold": 0.4321, "high_threshold": high, "min_area_px": 7}
    assert np.array_equal(decode(post(server, data, **query).content), decode(encode_mask(expected.mask())))
    answers = {output: post(server, data, output=output, **query) for output in ("probability", "labels", "overlay")}
    probability, labels = decode(answers["probability"].content), decode(answers["labels"].content)
    assert np.array_equal(probability, decode(encode_probability(expected.probability)))
    assert np.array_equal(labels, decode(encode_labels(expected.labels())[0]))
    assert (str(probability.dtype), str(labels.dtype)) == ("uint16", "uint16")
    assert decode(answers["overlay"].content).shape == (90, 140, 3)
    assert {answer.headers["x-threshold"] for answer in answers.values()} == {"0.4321"}


def test_outlines_regions_and_table_are_the_library_s(server: ServerProcess, reference: Segmenter) -> None:
    expected = reference.segment(GREY)
    provenance = {
        "X-Model": "best_model",
        "X-Model-Version": reference.version,
        "X-Threshold": f"{reference.config.threshold:.6g}",
    }
    outputs: tuple[Output, ...] = ("geojson", "rois", "table", "all")
    for output in outputs:
        answer = post(server, to_png(GREY), output=output)
        data, media_type = encode_output(output, expected, GREY, provenance)
        assert answer.headers["content-type"].split(";")[0] == media_type
        assert answer.content == data, output


def test_results_say_what_made_them_in_headers_and_in_the_image(server: ServerProcess, reference: Segmenter) -> None:
    answer = post(server, to_png(GREY))
    expected = {
        "X-Model": "best_model",
        "X-Model-Version": reference.version,
        "X-Threshold": f"{reference.config.threshold:.6g}",
    }
    assert {name: answer.headers[name] for name in expected} == expected
    assert PillowImage.open(io.BytesIO(answer.content)).info == {"Software": "Maskwell", **expected}
    stages = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    assert list(stages) == ["queue", "decode", "infer", "encode"]
    assert all(float(value) >= 0 for value in stages.values())
    assert float(stages["infer"]) > 0


def test_another_model_answers_by_its_name(server: ServerProcess, shared_weights: Path) -> None:
    other = load_reference(shared_weights / "other.pth", batch_tiles=4)
    answer = post(server, to_png(GREY), model="other")
    assert (answer.headers["x-model"], answer.headers["x-model-version"]) == ("other", other.version)
    assert np.array_equal(decode(answer.content) > 0, other.segment(GREY).mask())


def test_identical_uploads_get_identical_bytes(server: ServerProcess) -> None:
    assert post(server, to_png(GREY)).content == post(server, to_png(GREY), name="other.png").content


def test_a_plane_of_a_stack_is_chosen_by_page(server: ServerProcess, reference: Segmenter) -> None:
    stack = np.stack([GREY, GREY[::-1], GREY[:, ::-1]])
    data = by_tifffile(stack, photometric="minisblack")
    refusal = post(server, data)
    assert (refusal.status_code, refusal.json()["code"]) == (422, "ambiguous_axes")
    assert "page=0" in refusal.json()["detail"]
    answer = post(server, data, page=1)
    assert np.array_equal(decode(answer.content) > 0, reference.segment(stack[1]).mask())


def test_32_clients_at_once_get_the_bytes_that_each_gets_alone(server: ServerProcess) -> None:
    sizes = [(1, 1), (1, 700), (16, 16), (255, 257), (256, 256), (512, 512), (600, 90), (513, 1025)] * 4
    images = [to_png(draw_cells(height, width, seed)) for seed, (height, width) in enumerate(sizes)]
    images[17] = to_png(draw_cells(4096, 4096, 99))
    outputs = ["mask", "probability", "labels"]
    alone = [post(server, image, output=outputs[i % 3]) for i, image in enumerate(images)]
    with ThreadPoolExecutor(len(images)) as pool:
        together = list(pool.map(lambda i: post(server, images[i], output=outputs[i % 3]), range(len(images))))
    assert [answer.status_code for answer in together] == [200] * len(images)
    assert [answer.content for answer in together] == [answer.content for answer in alone]
    assert len({answer.content for answer in alone}) > len(images) - 4  # 1x1 has few answers; the others differ
    assert decode(together[17].content).shape == (4096, 4096)


def test_a_batch_gives_a_zip_with_a_result_for_each_good_file(server: ServerProcess) -> None:
    good, bad = to_png(GREY), to_png(GREY)[:200]
    uploads = [
        ("files", ("cells.png", good)),
        ("files", ("../../etc/cells.tif", good)),
        ("files", ("broken.png", bad)),
        ("files", ("Zellen äöü 細胞.png", to_png(COLOUR))),
        ("files", ("C:\\data\\CELLS.bmp", good)),
        ("files", ("empty.png", b"")),
        ("files", ("huge.png", promise_png(65536, 65536))),
    ]
    answer = httpx.post(f"{server.url}/segment/batch", files=uploads, params={"output": "labels"}, timeout=TIMEOUT)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip")
    assert answer.headers["x-model"] == "best_model"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names == [
            "cells_labels.png", "cells-2_labels.png", "Zellen äöü 細胞_labels.png", "CELLS-3_labels.png", "errors.json",
        ]  # fmt: skip
        alone = post(server, good, output="labels").content
        assert [archive.read(names[index]) == alone for index in (0, 1, 3)] == [True] * 3
        refused = json.loads(archive.read("errors.json"))
    assert [(item["file"], item["index"], item["problem"]["code"]) for item in refused] == [
        ("broken.png", 2, "undecodable_image"),
        ("empty.png", 5, "undecodable_image"),
        ("huge.png", 6, "image_too_large"),
    ]


def test_a_batch_without_errors_has_no_list_of_them_and_is_the_same_bytes_each_time(server: ServerProcess) -> None:
    uploads = [("files", (f"{index}.png", to_png(draw_cells(40, 50, index)))) for index in range(5)]
    answers = [httpx.post(f"{server.url}/segment/batch", files=uploads, timeout=TIMEOUT) for _ in range(2)]
    with zipfile.ZipFile(io.BytesIO(answers[0].content)) as archive:
        assert archive.namelist() == [f"{index}_mask.png" for index in range(5)]
    assert answers[0].content == answers[1].content


def test_the_committed_openapi_document_is_the_one_that_is_served(server: ServerProcess) -> None:
    committed = json.loads((ROOT / "docs" / "openapi.json").read_text())
    served = httpx.get(f"{server.url}/openapi.json", timeout=TIMEOUT).json()
    assert served == committed, "run: python -m app openapi > docs/openapi.json"


def test_health_tells_what_runs(server: ServerProcess, reference: Segmenter) -> None:
    answer = httpx.get(f"{server.url}/health", timeout=TIMEOUT)
    body = answer.json()
    assert answer.status_code == 200
    assert (body["status"], body["device"], body["runtime"], body["precision"]) == ("ready", "cpu", "openvino", "fp32")
    assert [(item["name"], item["default"]) for item in body["models"]] == [("best_model", True), ("other", False)]
    assert body["models"][0]["version"] == reference.version
    assert (body["queue"]["requests"], body["queue"]["pixels"], body["queue"]["waiting_tiles"]) == (0, 0, 0)


def test_a_model_shows_its_config_and_its_card(server: ServerProcess, reference: Segmenter) -> None:
    body = httpx.get(f"{server.url}/models/best_model", timeout=TIMEOUT).json()
    # how many images, but not which
    assert body["card"] == {"data": "drawn", "seed": 0, "split": {"train": 2, "validation": 1}, "tuned": {"images": 1}}
    assert body["config"] == reference.config.model_dump(mode="json")
    listed = httpx.get(f"{server.url}/models", timeout=TIMEOUT).json()["models"]
    assert [item["name"] for item in listed] == ["best_model", "other"]


def test_the_root_is_the_page(server: ServerProcess) -> None:
    answer = httpx.get(server.url, timeout=TIMEOUT)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
