"""The Python client and the `maskwell` command against a live server, and against ones that misbehave."""

import asyncio
import csv
import io
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_args

import httpx
import imagecodecs
import numpy as np
import PIL.Image
import pytest
import tifffile

import model.images
import model.outputs
from client import AsyncClient, Client, ClientError, ServiceError
from client.__main__ import IMAGE_SUFFIXES, _write, main
from client.api import SUFFIXES, Answer, ArrayOutput, Output, _retry_after_s, _to_array
from model import Segmenter
from tests.e2e.kit import (
    ROOT,
    ServerProcess,
    decode,
    draw_cells,
    find_free_port,
    load_reference,
    to_png,
    write_weights,
)

GREY = draw_cells(90, 140, 3)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    write_weights(folder / "best_model.pth", min_area_px=3)
    return folder


@pytest.fixture(scope="module")
def server(weights: Path) -> Iterator[ServerProcess]:
    with ServerProcess(weights, weights / "server.log") as process:
        yield process


@pytest.fixture(scope="module")
def reference(weights: Path) -> Segmenter:
    return load_reference(weights / "best_model.pth")


def test_arrays_files_and_bytes_give_what_the_library_gives(
    server: ServerProcess, reference: Segmenter, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(to_png(GREY))
    high = 0.999 * float(reference.segment(GREY).probability.max())
    expected = reference.segment(GREY, threshold=0.4321, high_threshold=high)
    with Client(server.url) as client:
        for source in (GREY, to_png(GREY), tmp_path / "a.png", str(tmp_path / "a.png")):
            labels = client.segment(source, threshold=0.4321, high_threshold=high)
            assert labels.dtype == np.int32
            np.testing.assert_array_equal(labels, expected.labels())
        mask = client.segment(GREY, output="mask", threshold=0.4321, high_threshold=high)
        assert mask.dtype == np.bool_
        np.testing.assert_array_equal(mask, expected.mask())
        probability = client.segment(GREY, output="probability")
        assert probability.dtype == np.float32
        np.testing.assert_array_equal(probability, expected.probability)
        assert client.segment(GREY, output="overlay").shape == (90, 140, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.bool_])
def test_every_type_of_array_arrives_as_it_is(server: ServerProcess, reference: Segmenter, dtype: type) -> None:
    image = (GREY > 100) if dtype is np.bool_ else GREY.astype(dtype)
    with Client(server.url) as client:
        np.testing.assert_array_equal(client.segment(image), reference.segment(image).labels())


def test_stacks_and_channels_of_arrays_and_files(server: ServerProcess, reference: Segmenter, tmp_path: Path) -> None:
    stack = np.stack([GREY, GREY[::-1], GREY[:, ::-1]])
    expected = [reference.segment(plane).labels() for plane in stack]
    tifffile.imwrite(tmp_path / "t.tif", stack, imagej=True, metadata={"axes": "TYX"})
    with Client(server.url) as client:
        for labels in (
            client.segment(stack, axes="ZYX"),
            client.segment(tmp_path / "t.tif"),
            client.segment(tmp_path / "t.tif", page="all", level=0),
        ):
            assert labels.dtype == np.int32
            np.testing.assert_array_equal(labels, expected)
        masks = client.segment(stack, output="mask", axes="ZYX")
        np.testing.assert_array_equal(masks, np.array(expected) > 0)
        assert client.segment(stack, output="overlay", axes="ZYX").shape == (*stack.shape, 3)
        channels = np.moveaxis(stack, 0, 2)
        np.testing.assert_array_equal(client.segment(channels, axes="YXC", channel=1), expected[1])
        np.testing.assert_array_equal(client.segment(np.asfortranarray(stack), axes="TYX", page=2), expected[2])
        tiff = client.fetch(GREY, output="labels", file_format="tiff")
        assert (tiff.media_type, tiff.suffix) == ("image/tiff", ".tif")
        np.testing.assert_array_equal(tifffile.imread(io.BytesIO(tiff.content)), expected[0])
        with pytest.raises(ClientError, match="any whose axes are said"):
            client.segment(stack[None])
        with pytest.raises(ServiceError, match="names 2 axes"):
            client.segment(stack, axes="YX")


def test_a_file_comes_with_what_made_it(server: ServerProcess, reference: Segmenter) -> None:
    with Client(server.url) as client:
        answer = client.fetch(GREY, output="table")
        assert (answer.media_type, answer.suffix) == ("text/csv", ".csv")
        assert (answer.model, answer.model_version) == ("best_model", reference.version)
        assert answer.threshold == pytest.approx(reference.config.threshold)
        assert len(answer.request_id) > 8
        rows = list(csv.DictReader(io.StringIO(answer.content.decode())))
        assert len(rows) == reference.segment(GREY).labels().max()
        assert [item["name"] for item in client.models()] == ["best_model"]
        assert client.model("best_model")["version"] == reference.version
        assert client.health()["status"] == "ready"


def test_asyncio_gives_the_same(server: ServerProcess, reference: Segmenter) -> None:
    async def work() -> list[np.ndarray]:
        async with AsyncClient(server.url) as client:
            assert (await client.health())["status"] == "ready"
            assert [item["name"] for item in await client.models()] == ["best_model"]
            assert (await client.model("best_model"))["version"] == reference.version
            return await asyncio.gather(*(client.segment(GREY, threshold=value / 10) for value in range(4, 7)))

    for value, labels in zip(range(4, 7), asyncio.run(work()), strict=True):
        np.testing.assert_array_equal(labels, reference.segment(GREY, threshold=value / 10).labels())


def test_a_refusal_is_the_services_own_words(server: ServerProcess) -> None:
    with Client(server.url) as client:
        with pytest.raises(ServiceError, match="no model 'nobody'; there are best_model") as caught:
            client.segment(GREY, model="nobody")
        assert (caught.value.status, caught.value.code) == (404, "unknown_model")
        assert caught.value.request_id
        with pytest.raises(ServiceError) as caught:
            client.segment(b"no image")
        assert caught.value.status == 415
        with pytest.raises(ClientError, match=r"shape \(2, 3, 4, 5\)"):
            client.segment(np.zeros((2, 3, 4, 5)))


class Busy(BaseHTTPRequestHandler):
    """Answers with each of `answers` in turn: a status, or None to hang up."""

    answers: list[int | None]
    seen: list[float]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        type(self).seen.append(time.monotonic())
        status = type(self).answers.pop(0)
        if status is None:
            self.connection.close()
            return
        body = to_png(GREY) if status == 200 else b"{}"
        self.send_response(status)
        for name, value in (
            ("Retry-After", "1"), ("X-Model", "m"), ("X-Model-Version", "v"), ("X-Threshold", "0.5"),
            ("Content-Type", {200: "image/png", 502: "text/html"}.get(status, "application/problem+json")),
            ("Content-Length", str(len(body))),
        ):  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def misbehaving(*answers: int | None) -> Iterator[tuple[str, list[float]]]:
    class Handler(Busy):
        pass

    Handler.answers, Handler.seen = list(answers), []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", Handler.seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_an_option_that_does_not_exist_is_refused_before_anything_is_sent(server: ServerProcess) -> None:
    with (
        Client(server.url) as client,
        pytest.raises(TypeError, match="no option 'treshold'; there are model"),
    ):
        client.segment(GREY, treshold=0.5)  # type: ignore[call-arg]  # that is the point


def test_a_busy_service_is_asked_again_after_as_long_as_it_says() -> None:
    with misbehaving(429, 503, 200) as (url, seen), Client(url) as client:
        np.testing.assert_array_equal(client.segment(GREY, output="mask"), GREY > 0)
    assert len(seen) == 3
    assert all(later - earlier >= 1 for earlier, later in itertools.pairwise(seen))


def test_the_client_waits_as_long_as_it_is_told_or_not_at_all() -> None:
    with Client("http://127.0.0.1:9") as client:
        for asked, waited in (("0", 0.1), ("1", 1), ("900", 900), ("3600", 3600)):
            assert client._judge(httpx.Response(429, headers={"retry-after": asked}), 0) == waited
        for asked in ("3601", "9" * 400):
            with pytest.raises(ServiceError):
                client._judge(httpx.Response(429, headers={"retry-after": asked}), 0)


def test_an_upload_that_nobody_takes_is_not_tried_again() -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(ClientError, match="no answer"):
        client._judge(httpx.WriteTimeout("slow"), 0)


@pytest.mark.parametrize("output", ["labels", "mask"])
def test_an_answer_of_any_size_becomes_an_array(output: ArrayOutput, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.zeros((30, 40), np.uint8)
    pixels[-1, -1] = 255
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", pixels.size // 3)  # which it is in other programs, if not so low
    content = imagecodecs.png_encode(pixels)
    found = _to_array(Answer(bytes(content), "image/png", "best_model", "1", 0.5, "x"), output)
    assert found.shape == pixels.shape
    assert found.dtype == (np.bool_ if output == "mask" else np.int32)
    assert found[-1, -1] == (output == "mask" or 255)


@pytest.mark.parametrize("kind", ["image/png", "image/tiff"])
def test_an_answer_that_is_no_picture_is_an_error_of_the_client(kind: str) -> None:
    with pytest.raises(ClientError, match=f"of type {kind}"):
        _to_array(Answer(b"<html>", kind, "best_model", "1", 0.5, "x"), "mask")


def test_retry_after_may_be_a_date_as_proxies_write_it() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    assert _retry_after_s(soon) == pytest.approx(20, abs=2)
    assert (_retry_after_s("7"), _retry_after_s("soon"), _retry_after_s("")) == (7, None, None)


def test_a_broken_connection_is_tried_again_and_what_lasts_is_an_error() -> None:
    with misbehaving(None, 200) as (url, seen), Client(url) as client:
        client.segment(GREY, output="mask")
        assert len(seen) == 2
    with misbehaving(429, 429) as (url, seen), Client(url, retries=1) as client:
        with pytest.raises(ServiceError) as caught:
            client.segment(GREY)
        assert (caught.value.status, len(seen)) == (429, 2)
    with misbehaving(500) as (url, seen), Client(url) as client:
        with pytest.raises(ServiceError):
            client.segment(GREY)
        assert len(seen) == 1
    with misbehaving(502, 200) as (url, seen), Client(url) as client:  # a proxy, while the service starts again
        client.segment(GREY, output="mask")
        assert len(seen) == 2
    with misbehaving(502, 502) as (url, seen), Client(url, retries=1) as client:
        with pytest.raises(ClientError, match="a proxy says 502"):
            client.segment(GREY)
        assert len(seen) == 2


def test_a_proxy_for_other_machines_is_not_asked_for_this_one(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{find_free_port()}")
    with Client(server.url) as client:
        assert client.segment(GREY).shape == GREY.shape
    with Client("http://maskwell.invalid", retries=0) as client, pytest.raises(ClientError, match="refused"):
        client.segment(GREY)  # the proxy is asked, and is not there


def test_no_service_and_no_url_are_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--url", f"http://127.0.0.1:{find_free_port()}"]) == 2
    assert "error: no answer from http://127.0.0.1" in capsys.readouterr().err
    assert main(["models", "--url", "localhost"]) == 2
    assert "is no URL of a service" in capsys.readouterr().err


def test_what_no_file_can_help_is_said_once_and_not_for_every_file(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_images(tmp_path / "in", 30)
    command = ["segment", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--url", server.url, "--jobs", "2"]
    for extra, words in (["--model", "none"], "no model 'none'"), (["--high-threshold", "7"], "high_threshold: "):
        assert main([*command, *extra]) == 2
        said = capsys.readouterr().err
        assert said.count(words) == 1, said
    assert results(tmp_path / "out") == {}


def test_a_service_that_goes_away_ends_the_run_and_not_each_file_after_the_other(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_images(tmp_path / "in", 12)
    command = ["segment", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--jobs", "2"]
    asked: list[Path] = []

    class Impatient(AsyncClient):
        """With a second try alone, so that the test is short."""

        def __init__(self, url: str, **options: Any) -> None:
            super().__init__(url, **{"retries": 1, **options})

        async def fetch(self, source: Any, **options: Any) -> Answer:
            asked.append(source)
            return await super().fetch(source, **options)

    monkeypatch.setattr("client.__main__.AsyncClient", Impatient)
    with ServerProcess(weights, tmp_path / "server.log") as process:

        def write_and_pull_the_plug(path: Path, data: bytes) -> None:
            _write(path, data)
            if process.process.poll() is None:
                process.process.kill()
                process.process.wait()

        monkeypatch.setattr("client.__main__._write", write_and_pull_the_plug)
        assert main([*command, "--url", process.url]) == 2
    said = capsys.readouterr().err
    assert said.count("no answer from") == 1, said
    assert "the same command goes on where it was" in said
    assert len(asked) <= 5, asked
    assert 1 <= len(results(tmp_path / "out")) <= 2


def test_values_that_mean_nothing_are_refused_with_what_is_allowed(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_images(tmp_path / "in", 1)
    command = ["segment", str(tmp_path / "in"), "--url", server.url]
    for option, value, words in (
        ("--page", "two", "'two'; allowed are the number of a plane, from 0, and all"),
        ("--page", "-1", "'-1'; allowed are"),
        ("--jobs", "many", "'many'; allowed is 1 to 64"),
        ("--jobs", "0", "'0'; allowed is 1 to 64"),
    ):
        with pytest.raises(SystemExit):
            main([*command, f"{option}={value}"])
        assert words in capsys.readouterr().err
    assert main([*command, "--axes", "QQ"]) == 2
    assert "error: axes: axes are letters of TZCYXS" in capsys.readouterr().err
    (tmp_path / "file").write_text("kept")
    assert main([*command, "--out", str(tmp_path / "file")]) == 2
    assert "is a file; it has to be a folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"


def test_models_are_listed(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--url", server.url]) == 0
    assert capsys.readouterr().out.startswith("best_model  version ")


def make_images(folder: Path, count: int) -> None:
    for index in range(count):
        place = folder / f"plate{index % 2}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{index:03d}.png").write_bytes(to_png(np.roll(GREY, index, axis=1)))


def results(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_segmented_once_and_bad_files_fail_alone(
    server: ServerProcess, reference: Segmenter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_images(tmp_path / "in", 5)
    (tmp_path / "in" / "bad.png").write_bytes(b"no image")
    command = ["segment", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--url", server.url]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "bad.png" in said
    assert "5 of 6 images segmented" in said
    found = results(tmp_path / "out")
    assert sorted(found) == [f"plate{index % 2}/{index:03d}_mask.png" for index in (0, 2, 4, 1, 3)]
    expected = reference.segment(np.roll(GREY, 3, axis=1)).mask()
    np.testing.assert_array_equal(decode(found["plate1/003_mask.png"]) > 0, expected)

    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    assert main(command) == 1  # the bad one is tried again, the others are not
    assert "5 of 6 results are there already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")} == stamps


def test_a_pattern_keeps_the_folders_below_its_fixed_part(
    server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_images(tmp_path / "in", 4)
    monkeypatch.setenv("MASKWELL_URL", server.url)
    assert main(["segment", str(tmp_path / "in" / "*" / "00[01].png"), "--out", str(tmp_path / "out")]) == 0
    assert sorted(results(tmp_path / "out")) == ["plate0/000_mask.png", "plate1/001_mask.png"]
    assert main(["segment", str(tmp_path / "in" / "*.png")]) == 2
    assert "matches no images" in capsys.readouterr().err


def test_results_beside_their_images_are_no_images_of_the_next_run(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_images(tmp_path, 2)
    assert main(["segment", str(tmp_path), "--url", server.url, "--output", "labels"]) == 0
    assert "left out" not in capsys.readouterr().err
    assert main(["segment", str(tmp_path), "--url", server.url, "--output", "labels"]) == 0
    assert "2 files are left out, for their names are those of results" in capsys.readouterr().err
    assert len(results(tmp_path)) == 4


def test_results_within_the_folder_of_images_are_no_images_either(server: ServerProcess, tmp_path: Path) -> None:
    make_images(tmp_path, 2)
    for _ in range(2):
        assert main(["segment", str(tmp_path), "--out", str(tmp_path / "masks"), "--url", server.url]) == 0
    assert len(results(tmp_path)) == 4
    # nor of a run that writes elsewhere
    for files in (str(tmp_path), str(tmp_path / "**" / "*.png")):
        assert main(["segment", files, "--out", str(tmp_path / "more"), "--url", server.url]) == 0
        assert len(results(tmp_path)) == 6


@pytest.mark.parametrize(
    ("pattern", "options", "ending"),
    [
        ("", ("--page", "0"), "_mask_p0.png"),
        ("", ("--channel", "mean"), "_mask_cmean.png"),
        ("", ("--page", "0", "--channel", "0", "--format", "tiff"), "_mask_p0_c0.tif"),
        ("*.png", (), "_mask.png"),
        ("**/*.png", (), "_mask.png"),
        ("00*.png", ("--page", "0"), "_mask_p0.png"),
    ],
)
def test_the_same_command_again_does_nothing_and_another_output_takes_no_result_for_an_image(
    server: ServerProcess, tmp_path: Path, pattern: str, options: tuple[str, ...], ending: str
) -> None:
    for index in range(2):
        (tmp_path / f"{index:03d}.png").write_bytes(to_png(GREY))
    command = ["segment", str(tmp_path / pattern), "--url", server.url, *options]
    names = {f"{index:03d}{end}" for index in range(2) for end in (".png", ending)}
    for _ in range(2):
        assert main(command) == 0
        assert set(results(tmp_path)) == names
    for path in (str(tmp_path), str(tmp_path / "*")):
        assert main(["segment", path, "--output", "labels", "--url", server.url]) == 0
        assert set(results(tmp_path)) == names | {"000_labels.png", "001_labels.png"}


def test_results_in_a_folder_below_a_pattern_are_no_images(server: ServerProcess, tmp_path: Path) -> None:
    make_images(tmp_path, 2)
    for output in ("mask", "mask", "labels"):
        command = ["segment", str(tmp_path / "**" / "*.png"), "--out", str(tmp_path / "out"), "--url", server.url]
        assert main([*command, "--output", output]) == 0
    assert len(results(tmp_path)) == 2 + 4
    # and where the images lie below the folder of results, they are images
    make_images(tmp_path / "out" / "more", 1)
    more = str(tmp_path / "out" / "more")
    assert main(["segment", more, "--out", str(tmp_path / "out"), "--url", server.url]) == 0
    assert (tmp_path / "out" / "plate0" / "000_mask.png").is_file()


def test_a_name_like_a_result_s_is_an_image_where_its_image_is_not_there_or_it_is_named_itself(
    server: ServerProcess, tmp_path: Path
) -> None:
    (tmp_path / "a_mask_p0.png").write_bytes(to_png(GREY))
    assert main(["segment", str(tmp_path), "--url", server.url]) == 0
    assert set(results(tmp_path)) == {"a_mask_p0.png", "a_mask_p0_mask.png"}
    (tmp_path / "a.png").write_bytes(to_png(GREY))
    named = str(tmp_path / "a_mask_p0.png")
    assert main(["segment", named, "--output", "labels", "--url", server.url]) == 0
    assert (tmp_path / "a_mask_p0_labels.png").is_file()


def test_an_input_is_never_taken_for_a_result(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "a_mask.png"):
        (tmp_path / name).write_bytes(to_png(GREY))
    given = ["segment", str(tmp_path / "a.png"), str(tmp_path / "a_mask.png"), "--url", server.url, "--overwrite"]
    assert main(given) == 2
    assert "is an input" in capsys.readouterr().err
    assert (tmp_path / "a_mask.png").read_bytes() == to_png(GREY)


def test_each_page_has_a_result_of_its_own(server: ServerProcess, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", np.stack([GREY, np.roll(GREY, 40, axis=1)]), photometric="minisblack")
    for page in ("0", "1"):
        assert main(["segment", str(tmp_path / "s.tif"), "--page", page, "--url", server.url]) == 0
    found = results(tmp_path)
    assert found["s_mask_p0.png"] != found["s_mask_p1.png"]


def test_channel_axes_level_and_format_can_be_said_on_the_command_line(server: ServerProcess, tmp_path: Path) -> None:
    stack = np.stack([GREY, GREY[::-1]])
    tifffile.imwrite(tmp_path / "s.tif", stack, photometric="minisblack")
    command = ["segment", str(tmp_path / "s.tif"), "--url", server.url, "--out", str(tmp_path / "out")]
    assert main([*command, "--axes", "CYX", "--channel", "1", "--format", "tiff"]) == 0
    assert main([*command, "--page", "all", "--output", "labels", "--level", "0"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["s_labels_pall.tif", "s_mask_c1.tif"]
    assert tifffile.imread(tmp_path / "out" / "s_mask_c1.tif").shape == GREY.shape
    assert tifffile.imread(tmp_path / "out" / "s_labels_pall.tif").shape == stack.shape


def test_a_name_that_is_no_text_fails_nobody(server: ServerProcess, tmp_path: Path) -> None:
    name = os.fsdecode(b"a\xff.png")
    (tmp_path / name).write_bytes(to_png(GREY))
    make_images(tmp_path, 1)
    assert main(["segment", str(tmp_path), "--out", str(tmp_path / "out"), "--url", server.url]) == 0
    assert len(results(tmp_path / "out")) == 2


def test_a_refused_file_takes_one_line_whatever_its_name_is(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "two\nlines\x1b[2J.png").write_bytes(b"no image")
    assert main(["segment", str(tmp_path), "--out", str(tmp_path / "out"), "--url", server.url]) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if "undecodable_image" in line]
    assert r"two\nlines\x1b[2J.png" in line


def test_two_images_that_would_share_a_result_are_refused(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).write_bytes(to_png(GREY))
    assert main(["segment", str(tmp_path), "--url", server.url]) == 2
    assert "several images would be written" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_run_goes_on_without_doing_anything_twice(server: ServerProcess, tmp_path: Path) -> None:
    make_images(tmp_path / "in", 200)
    command = [sys.executable, "-m", "client", "segment", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    # one image at a time, or all may be done before the signal comes
    one_by_one = [*command, "--url", server.url, "--jobs", "1"]
    process = subprocess.Popen(
        one_by_one,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    deadline = time.monotonic() + 120
    while sum(1 for _ in (tmp_path / "out").rglob("*_mask.png")) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    done = results(tmp_path / "out")
    assert 20 <= len(done) < 200
    assert all(name.endswith("_mask.png") for name in done)  # no parts of files
    stamps = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in done}
    again = subprocess.run([*command, "--url", server.url], cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"{len(done)} of 200 results are there already" in again.stderr
    assert len(results(tmp_path / "out")) == 200
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in done} == stamps


def test_what_the_client_says_of_the_service_is_true() -> None:
    """The client stands on HTTP alone, so it has its own copies."""
    assert IMAGE_SUFFIXES == model.images.SUFFIXES
    assert SUFFIXES == model.outputs.SUFFIXES
    assert get_args(Output) == get_args(model.outputs.Output)


def test_other_commands_have_their_own_help() -> None:
    for name, words in (("serve", "MASKWELL_PORT"), ("train", "--recipe"), ("evaluate", "--report")):
        done = subprocess.run(
            [sys.executable, "-m", "client", name, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert words in done.stdout
