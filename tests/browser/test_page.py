"""The page in a real browser, against a real server."""

import base64
import io
import re
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import ExifTags
from PIL import Image as PillowImage
from playwright.sync_api import Browser, Page, Route, expect

from model.outputs import write_zip
from tests.browser.kit import BROWSERS, find_browser
from tests.e2e.kit import ServerProcess, decode, draw_cells, to_png
from tests.files import by_tifffile

if find_browser() is None:
    pytest.skip(f"no browser ({', '.join(BROWSERS)}) in the path: the page is not tested", allow_module_level=True)

HEIGHT, WIDTH = 90, 140
GREY = draw_cells(HEIGHT, WIDTH, 3)
READ_MASK = """([width, height]) => {
    const {x, y, scale} = document.querySelector("#stage").dataset;
    if (Number(scale) !== 1) throw new Error(`scale ${scale}`);
    const pen = document.querySelector("#overlay").getContext("2d");
    return [...pen.getImageData(Number(x), Number(y), width, height).data].filter((_, i) => i % 4 === 3);
}"""
DROP = """(files) => {
    const data = new DataTransfer();
    for (const [name, text] of files) {
        data.items.add(new File([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], name));
    }
    document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
}"""

PASTE = DROP.replace(
    'document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data,',
    'document.body.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data,',
)


def to_imagej(image: npt.NDArray[Any], resolution: tuple[float, float] | None = None, **about: Any) -> bytes:
    return by_tifffile(image, imagej=True, resolution=resolution, metadata=about)


PNG = to_png(GREY)
TIFF16 = by_tifffile(GREY.astype(np.uint16) * 200)
STACK = by_tifffile(np.stack([GREY, GREY[::-1], GREY[:, ::-1]]), photometric="minisblack")


def drop(page: Page, **files: bytes) -> None:
    named = [[name.replace("_", "."), base64.b64encode(data).decode()] for name, data in files.items()]
    page.evaluate(DROP, named)


def ask(server: ServerProcess, data: bytes, **query: Any) -> bytes:
    answer = httpx.post(f"{server.url}/segment", files={"file": ("x", data)}, params=query, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.content


def unzip(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def ask_for_mask(server: ServerProcess, data: bytes, **query: Any) -> npt.NDArray[np.bool_]:
    mask: npt.NDArray[np.bool_] = decode(ask(server, data, **query)) > 0
    assert 0 < mask.mean() < 1
    return mask


def find_barriers(page: Page) -> list[str]:
    """What axe-core finds that keeps people out: names, roles, contrast, order of headings and such (WCAG 2.2 AA)."""
    violations = Axe().run(page).response["violations"]
    return [f"{found['id']}: {node['html']}" for found in violations for node in found["nodes"]]


def wait_for(page: Page, state: str) -> None:
    page.wait_for_selector(f"#overlay[data-state={state}]")


def wait_until(page: Page, condition: Callable[[], bool]) -> None:
    """Of what the test itself collects, which it does while the page is waited for."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        page.wait_for_timeout(20)


def open_at_once(page: Page, data: bytes, name: str = "cells_png") -> None:
    """One picture, one pixel of it to one of the screen, its cells filled."""
    drop(page, **{name: data})
    wait_for(page, "exact")
    page.click("[data-zoom=one]")
    page.check("[value=fill]")
    page.wait_for_selector("#stage[data-scale='1']")


def shown_mask(page: Page) -> npt.NDArray[np.bool_]:
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    alpha = np.array(page.evaluate(READ_MASK, [WIDTH, HEIGHT]), dtype=np.uint8).reshape(HEIGHT, WIDTH)
    assert set(np.unique(alpha)) <= {0, 255}
    return alpha > 0


def view_of(page: Page) -> tuple[float, float, float]:
    """Scale, x and y of the picture on the screen."""
    data = page.evaluate("({...document.querySelector('#stage').dataset})")
    return float(data["scale"]), float(data["x"]), float(data["y"])


def test_three_dropped_pictures_are_segmented_and_the_stack_asks_for_its_plane(
    page: Page, server: ServerProcess
) -> None:
    drop(page, one_png=PNG, two_tif=TIFF16, three_tif=STACK)
    lines = page.locator("#list .open")
    expect(lines).to_have_count(3)
    for index, data in enumerate((PNG, TIFF16)):
        n = int(decode(ask(server, data, output="labels")).max())
        expect(lines.nth(index)).to_contain_text(f"{n} cell")
    expect(lines.nth(2)).to_contain_text("Which plane?")

    lines.nth(2).click()
    question = page.locator("#question")
    expect(question).to_contain_text("holds 3 planes, and does not say what they are")
    expect(page.locator("#planes-hint")).to_have_text("0 to 2")
    assert [option.get_attribute("value") for option in page.query_selector_all("#readings option")] == [
        "ZYX", "TYX", "CYX",
    ]  # fmt: skip
    assert find_barriers(page) == []
    page.fill("#plane", "1")
    page.press("#plane", "Enter")
    wait_for(page, "exact")
    expect(question).to_be_empty()
    page.check("[value=fill]")
    page.click("[data-zoom=one]")
    page.wait_for_selector("#stage[data-scale='1']")
    assert np.array_equal(shown_mask(page), ask_for_mask(server, STACK, page=1))
    with page.expect_response(lambda response: "threshold=0.43" in response.url):
        page.fill("#threshold", "0.43")
    wait_for(page, "exact")
    for index, data, query in ((2, STACK, {"page": 1}), (1, TIFF16, {}), (0, PNG, {})):
        lines.nth(index).click()
        wait_for(page, "exact")
        with page.expect_download() as download:
            page.click("#downloads button:text-is('Labels')")
        wanted = ask(server, data, output="labels", threshold=0.43, **query)
        assert Path(download.value.path()).read_bytes() == wanted


def test_a_channel_is_chosen_where_the_file_has_several(page: Page, server: ServerProcess) -> None:
    about: dict[str, Any] = {"axes": "CYX", "Labels": ["DAPI", "GFP"]}
    data = to_imagej(np.stack([GREY, GREY[::-1]]), **about)
    drop(page, two_tif=data, more_tif=to_imagej(np.stack([GREY[::-1], GREY]), **about))
    expect(page.locator("#question")).to_have_text("This file holds 2 channels: DAPI, GFP. Which one shows the cells?")
    expect(page.locator("#list .open").nth(1)).to_contain_text("Which channel?")
    expect(page.locator("#plane-part")).to_be_hidden()
    assert find_barriers(page) == []
    page.select_option("#channel", "GFP")
    page.click("#for-all")
    wait_for(page, "exact")
    expect(page.locator("#question")).to_be_empty()
    expect(page.locator("#list .open").nth(1)).to_contain_text("cell")
    page.check("[value=fill]")
    page.click("[data-zoom=one]")
    page.wait_for_selector("#stage[data-scale='1']")
    assert np.array_equal(shown_mask(page), ask_for_mask(server, data, channel="1"))
    expect(page.locator("#shell")).to_contain_text("channel=1")


def test_a_channel_whose_name_is_the_number_of_another_can_be_chosen(page: Page, server: ServerProcess) -> None:
    data = to_imagej(np.stack([GREY[::-1], GREY, GREY[:, ::-1]]), axes="CYX", Labels=["1", "2", "3"])
    drop(page, three_tif=data)
    page.select_option("#channel", label="2")
    page.click("#planes [type=submit]")
    wait_for(page, "exact")
    page.check("[value=fill]")
    page.click("[data-zoom=one]")
    page.wait_for_selector("#stage[data-scale='1']")
    assert np.array_equal(shown_mask(page), ask_for_mask(server, PNG))


def test_axes_that_say_channels_let_one_be_chosen(page: Page, server: ServerProcess) -> None:
    data = by_tifffile(np.stack([GREY[::-1], GREY, GREY[:, ::-1]]), photometric="minisblack", metadata=None)
    drop(page, pages_tif=data)
    page.fill("#axes", "CYX")
    page.press("#axes", "Enter")
    expect(page.locator("#question")).to_contain_text("3 channels. Which one shows the cells?")
    page.select_option("#channel", "1")
    page.click("#planes [type=submit]")
    wait_for(page, "exact")
    with page.expect_download() as download:
        page.click("#downloads button:text-is('Mask')")
    assert download.value.suggested_filename == "pages_mask_c1.png"
    assert Path(download.value.path()).read_bytes() == ask(server, data, output="mask", axes="CYX", channel="1")


def test_axes_that_are_said_show_the_first_plane_and_which_one_it_is(page: Page) -> None:
    data = by_tifffile(np.stack([GREY, GREY[::-1]]), photometric="minisblack", metadata=None)
    drop(page, pages_tif=data)
    page.fill("#axes", "TYX")
    page.press("#axes", "Enter")
    wait_for(page, "exact")
    expect(page.locator("#plane")).to_have_value("0")
    expect(page.locator("#axes")).to_have_value("TYX")


def test_a_stack_of_times_is_walked_through_plane_by_plane_and_downloaded_as_a_whole(
    page: Page, server: ServerProcess
) -> None:
    data = to_imagej(np.stack([GREY, GREY[::-1], GREY[:, ::-1]]), axes="TYX")
    open_at_once(page, data, "times_tif")
    assert np.array_equal(shown_mask(page), ask_for_mask(server, data, page=0))
    expect(page.locator("#planes-hint")).to_have_text("0 to 2, time")
    expect(page.locator("#for-all")).to_be_hidden()
    with page.expect_response(lambda response: "page=1" in response.url):
        page.click("[aria-label='The next plane']")
    wait_for(page, "exact")
    page.click("[data-zoom=one]")
    page.wait_for_selector("#stage[data-scale='1']")
    assert np.array_equal(shown_mask(page), ask_for_mask(server, data, page=1))
    assert find_barriers(page) == []
    page.check("#whole")
    for output, words, ending in (("labels", "Labels", ".tif"), ("table", "Table", ".csv")):
        with page.expect_download() as download:
            page.click(f"#downloads button:text-is('{words}')")
        assert download.value.suggested_filename == f"times_{output}{ending}"
        assert Path(download.value.path()).read_bytes() == ask(server, data, output=output)


def test_sizes_are_in_micrometres_too_where_the_file_says_how_large_a_pixel_is(page: Page) -> None:
    drop(page, sized_tif=to_imagej(GREY, resolution=(2, 2), axes="YX", unit="um"))
    wait_for(page, "exact")
    sizes = page.locator("#sizes").text_content() or ""
    found = re.match(r"Median ([0-9,]+) px \(([0-9.]+) µm²\)", sizes)
    assert found, sizes
    assert float(found[2]) == pytest.approx(int(found[1].replace(",", "")) / 4, rel=0.01)


def test_the_pixels_on_show_are_those_of_the_mask_that_the_api_returns(page: Page, server: ServerProcess) -> None:
    open_at_once(page, TIFF16, "cells_tif")
    assert np.array_equal(shown_mask(page), ask_for_mask(server, TIFF16))
    page.check("[value=colours]")
    assert np.array_equal(shown_mask(page), ask_for_mask(server, TIFF16))
    page.check("[value=outlines]")
    overlay = decode(ask(server, TIFF16, output="overlay"))
    assert np.array_equal(shown_mask(page), (overlay == (0, 220, 255)).all(axis=2))  # BGR
    held: list[Route] = []
    page.route("**/segment?output=labels*", lambda route: held.append(route))
    page.fill("#min-area", "60")
    page.wait_for_selector("#overlay[data-state=live]")
    wait_until(page, lambda: bool(held))
    held[0].continue_()
    wait_for(page, "exact")
    page.check("[value=fill]")
    assert np.array_equal(shown_mask(page), ask_for_mask(server, TIFF16, min_area_px=60))


def test_a_moving_threshold_answers_at_once_and_a_resting_one_exactly(page: Page, server: ServerProcess) -> None:
    open_at_once(page, PNG)
    probability = decode(ask(server, PNG, output="probability"))
    threshold = round(float(np.percentile(probability, 70)) / 65535, 3)
    held: list[Route] = []
    page.route("**/segment?output=labels*", lambda route: held.append(route))  # the service keeps the page waiting
    page.fill("#threshold-number", str(threshold))
    wait_for(page, "live")
    assert np.array_equal(shown_mask(page), probability >= np.ceil(threshold * 65535 - 1e-6))
    expect(page.locator("#kind")).to_have_text("counting…")
    wait_until(page, lambda: bool(held))
    page.wait_for_timeout(600)
    assert len(held) == 1
    assert f"threshold={threshold}" in held[0].request.url
    held[0].continue_()
    page.unroute("**/segment?output=labels*")
    wait_for(page, "exact")
    labels = decode(ask(server, PNG, output="labels", threshold=threshold))
    assert np.array_equal(shown_mask(page), labels > 0)
    expect(page.locator("#count")).to_have_text(f"{labels.max():,}")
    areas = np.sort(np.bincount(labels.ravel())[1:])
    expect(page.locator("#sizes")).to_contain_text(f"{areas[0]:,} to {areas[-1]:,} px")
    with page.expect_response(lambda response: response.url.endswith("segment?output=labels")):
        page.click("#own")
    wait_for(page, "exact")
    assert np.array_equal(shown_mask(page), ask_for_mask(server, PNG))


def test_a_picture_is_sent_and_segmented_once_and_its_downloads_once_more(page: Page) -> None:
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    open_at_once(page, PNG)
    assert [url.split("?")[1] for url in sent] == ["output=view"]
    for words in ("Mask", "Probability", "Labels"):
        with page.expect_download():
            page.click(f"#downloads button:text-is('{words}')")
    assert len(sent) == 1
    for words in ("Overlay", "For QuPath", "For Fiji", "Table", "All of these"):
        with page.expect_download():
            page.click(f"#downloads button:text-is('{words}')")
    assert [url.split("?")[1] for url in sent[1:]] == ["output=all"]


def test_a_download_that_fails_says_so_and_leaves_the_picture_as_it_is(page: Page) -> None:
    open_at_once(page, PNG)
    before = page.locator("#list .open").inner_text()
    page.route("**/segment?*output=all*", lambda route: route.fulfill(status=500, body="broken"))
    page.click("#downloads button:text-is('Table')")
    expect(page.locator("#status")).to_contain_text("table could not be downloaded. The answer was 500")
    assert page.locator("#list .open").inner_text() == before
    page.unroute("**/segment?*output=all*")
    with page.expect_download():
        page.click("#downloads button:text-is('Table')")


def test_what_is_downloaded_is_of_the_model_that_is_on_show(page: Page) -> None:
    open_at_once(page, PNG)
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url.split("?")[1]) if request.method == "POST" else None)

    def by_other_weights(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, headers={**answer.headers, "x-model-version": "0" * 64})

    page.route("**/segment?*output=all*", by_other_weights)
    page.click("#downloads button:text-is('Table')")
    expect(page.locator("#status")).to_contain_text("The model has changed")
    wait_for(page, "exact")
    assert sent[:2] == ["output=all", "output=view"]
    page.unroute("**/segment?*output=all*")
    with page.expect_download():
        page.click("#downloads button:text-is('Table')")


def test_a_picture_that_the_browser_can_read_is_shown_before_its_cells(page: Page) -> None:
    held: list[Route] = []
    page.route("**/segment*", lambda route: held.append(route))  # the service keeps the page waiting
    drop(page, cells_png=PNG)
    expect(page.locator("#title")).to_have_text(f"cells.png, {WIDTH} × {HEIGHT} px")
    expect(page.locator("#stage")).to_be_visible()
    assert page.get_attribute("#overlay", "data-state") == "none"
    wait_until(page, lambda: bool(held))
    held[0].continue_()
    wait_for(page, "exact")


def test_a_photo_that_its_camera_turned_is_shown_as_its_pixels_are_stored(page: Page, server: ServerProcess) -> None:
    exif = PillowImage.Exif()
    exif[ExifTags.Base.Orientation] = 6
    buffer = io.BytesIO()
    PillowImage.fromarray(GREY).save(buffer, "JPEG", exif=exif)
    held: list[Route] = []
    page.route("**/segment*", lambda route: held.append(route))
    with page.expect_request("**/segment*"):
        drop(page, turned_jpg=buffer.getvalue())
    page.wait_for_timeout(300)
    expect(page.locator("#stage")).to_be_hidden()  # the browser alone would show it turned
    wait_until(page, lambda: bool(held))
    held[0].continue_()
    wait_for(page, "exact")
    expect(page.locator("#title")).to_have_text(f"turned.jpg, {WIDTH} × {HEIGHT} px")


def test_the_model_s_own_threshold_comes_back_for_a_picture_that_never_had_it(page: Page) -> None:
    open_at_once(page, PNG)
    own = page.input_value("#threshold-number")
    page.fill("#threshold-number", "0.9")
    drop(page, other_png=to_png(GREY[::-1]))
    expect(page.locator("#title")).to_contain_text("other.png")
    wait_for(page, "exact")
    page.click("#own")
    wait_for(page, "exact")
    assert page.input_value("#threshold-number") == own


DOWNLOADS = [
    ("mask", "Mask", ".png"),
    ("probability", "Probability", ".png"),
    ("labels", "Labels", ".png"),
    ("overlay", "Overlay", ".png"),
    ("geojson", "For QuPath", ".geojson"),
    ("rois", "For Fiji", ".zip"),
    ("table", "Table", ".csv"),
    ("all", "All of these", ".zip"),
]


@pytest.mark.parametrize(("output", "words", "ending"), DOWNLOADS)
def test_a_download_is_the_api_s_answer_to_the_byte(
    page: Page, server: ServerProcess, output: str, words: str, ending: str
) -> None:
    open_at_once(page, PNG)
    with page.expect_response(lambda response: "threshold=0.43" in response.url):
        page.fill("#threshold", "0.43")
    wait_for(page, "exact")
    with page.expect_download() as download:
        page.click(f"#downloads button:text-is('{words}')")
    assert download.value.suggested_filename == f"cells_{output}{ending}"
    query = {} if output == "probability" else {"threshold": 0.43}  # no threshold changes a probability
    assert Path(download.value.path()).read_bytes() == ask(server, PNG, output=output, **query)


@pytest.mark.parametrize("opened_first", [True, False], ids=["opened, then answered", "answered, then opened"])
def test_an_answer_for_settings_that_changed_meanwhile_is_not_taken_for_theirs(
    page: Page, server: ServerProcess, opened_first: bool
) -> None:
    open_at_once(page, PNG, "one_png")
    second = to_png(GREY[::-1])
    areas = np.bincount(decode(ask(server, second, output="labels")).ravel())[1:]
    least = int(np.sort(areas)[len(areas) // 2]) + 1  # drops half of the cells
    wanted = ask(server, second, output="labels", min_area_px=least)
    n = int(decode(wanted).max())
    assert 0 < n < len(areas)
    held: list[Route] = []
    page.route("**/segment?output=view*", lambda route: held.append(route))
    with page.expect_request("**/segment?output=view*"):
        drop(page, two_png=second)
    lines = page.locator("#list .open")
    lines.nth(0).click()
    page.fill("#min-area", str(least))
    expect(page.locator("#kind")).to_be_empty()
    wait_for(page, "exact")
    if opened_first:
        lines.nth(1).click()
        held[0].continue_()
    else:
        held[0].continue_()
        expect(lines.nth(1)).to_contain_text("Open to count anew")
        lines.nth(1).click()
    expect(page.locator("#title")).to_contain_text("two.png")
    expect(page.locator("#count")).to_have_text(str(n))
    expect(page.locator("#kind")).to_be_empty()
    wait_for(page, "exact")
    with page.expect_download() as download:
        page.click("#downloads button:text-is('Labels')")
    assert Path(download.value.path()).read_bytes() == wanted


def test_another_model_gives_its_own_mask(page: Page, server: ServerProcess) -> None:
    open_at_once(page, PNG)
    with page.expect_response(lambda response: "output=view&model=other" in response.url):
        page.select_option("#model", "other")
    wait_for(page, "exact")
    assert np.array_equal(shown_mask(page), ask_for_mask(server, PNG, model="other"))


def test_a_pasted_picture_is_zoomed_by_the_wheel_and_moved_by_the_mouse(page: Page) -> None:
    page.evaluate(PASTE, [["image.png", base64.b64encode(PNG).decode()]])
    wait_for(page, "exact")
    fitted = view_of(page)
    box = page.locator("#stage").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.wheel(0, -400)
    page.wait_for_function("(before) => document.querySelector('#stage').dataset.scale > before", arg=fitted[0])
    scale, x, y = view_of(page)
    for before, after in zip(fitted[1:], (x, y), strict=True):  # what lies under the pointer stays there
        assert (100 - before) / fitted[0] == pytest.approx((100 - after) / scale, abs=1 / scale)
    page.mouse.down()
    page.mouse.move(box["x"] + 130, box["y"] + 80)
    page.mouse.up()
    page.wait_for_function("(before) => Number(document.querySelector('#stage').dataset.x) !== before", arg=x)
    assert view_of(page) == (scale, x + 30, y - 20)
    page.click("[data-zoom=fit]")
    page.wait_for_function("(scale) => Number(document.querySelector('#stage').dataset.scale) === scale", arg=fitted[0])
    assert view_of(page) == fitted


def test_what_is_no_image_is_refused_in_words(page: Page) -> None:
    drop(page, notes_txt=b"hello", cells_png=PNG)
    expect(page.locator("#problem")).to_contain_text("notes.txt. Not an image that can be read")
    expect(page.locator("#again")).to_be_hidden()  # it would not be one the next time
    expect(page.locator("#list .open").nth(0)).to_contain_text("Not segmented")
    expect(page.locator("#list .open").nth(1)).to_contain_text("cells")
    page.click("[aria-label='Remove notes.txt']")
    expect(page.locator("#problem")).to_be_hidden()
    wait_for(page, "exact")


def test_a_full_queue_is_waited_for(page: Page) -> None:
    refused: list[str] = []

    def refuse_once(route: Route) -> None:
        if refused:
            route.continue_()
            return
        refused.append(route.request.url)
        body = {"title": "The queue is full", "detail": "9 requests are waiting", "code": "queue_full"}
        route.fulfill(status=429, headers={"Retry-After": "3"}, json=body)

    page.route("**/segment?*", refuse_once)
    drop(page, cells_png=PNG)
    said = re.compile(r"The queue is full: 9 requests are waiting\. Trying again in [123] s")
    expect(page.locator("#status")).to_contain_text(said)
    wait_for(page, "exact")
    assert len(refused) == 1


def test_labels_that_come_as_a_tiff_show_the_mask_and_can_be_downloaded(page: Page, server: ServerProcess) -> None:
    def answer(route: Route) -> None:
        response = httpx.post(route.request.url, files={"file": ("x", PNG)}, timeout=60)
        parts = unzip(response.content)
        body = write_zip({"labels.tif" if name == "labels.png" else name: data for name, data in parts.items()})
        route.fulfill(body=body, headers=dict(response.headers) | {"content-length": str(len(body))})

    page.route("**/segment?output=view*", answer)
    page.route("**/segment?output=all*", answer)
    open_at_once(page, PNG)
    assert np.array_equal(shown_mask(page), ask_for_mask(server, PNG))
    expect(page.locator("#sizes")).to_contain_text("TIFF of 32 bits")
    with page.expect_download() as download:
        page.click("#downloads button:text-is('Labels')")
    assert download.value.suggested_filename == "cells_labels.tif"


def test_a_service_that_is_away_is_said_and_can_be_asked_again(page: Page) -> None:
    page.route("**/segment*", lambda route: route.abort())
    drop(page, cells_png=PNG)
    expect(page.locator("#problem")).to_contain_text("the service cannot be reached")
    page.unroute("**/segment*")
    page.click("#again")
    wait_for(page, "exact")
    expect(page.locator("#problem")).to_be_hidden()
    page.route("**/segment*", lambda route: route.abort())
    page.fill("#threshold-number", "0.43")
    page.press("#threshold-number", "Enter")
    expect(page.locator("#kind")).to_have_text("not counted anew")
    page.click("#downloads button:text-is('Table')")
    expect(page.locator("#status")).to_contain_text(
        "table could not be downloaded. No answer: the service cannot be reached"
    )
    page.unroute("**/segment*")
    page.click("#again")
    wait_for(page, "exact")
    expect(page.locator("#kind")).to_be_empty()


def test_all_of_it_works_by_keyboard(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "cells.png"
    path.write_bytes(PNG)
    page.on("filechooser", lambda _: None)  # from the first listener on, Chromium shows no window of its own
    for _ in range(2):  # past the link to the documentation
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "choose"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(path)
    wait_for(page, "exact")
    expect(page.locator("#status")).to_contain_text("cells.png: ")
    page.focus("#stage")
    before = page.get_attribute("#stage", "data-scale")
    page.keyboard.press("+")
    page.wait_for_function("(before) => document.querySelector('#stage').dataset.scale > before", arg=before)
    page.focus("#threshold")
    with page.expect_response(lambda response: "threshold=" in response.url):
        page.keyboard.press("ArrowRight")
    reached = set()
    page.focus("#choose")
    for _ in range(30):
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        page.keyboard.press("Tab")
    assert {"choose", "try", "stage", "threshold", "opacity", "min-area", "model", "Mask", "Labels"} <= reached
    assert str(page.get_attribute("#overlay", "aria-label")).startswith("cells.png, 140 by 90 pixels; ")


@pytest.mark.parametrize(
    ("scheme", "width", "height"), [("light", 1280, 800), ("dark", 1280, 800), ("light", 360, 740), ("dark", 360, 740)]
)
def test_the_sample_in_light_and_dark_wide_and_narrow(
    browser: Browser, server: ServerProcess, tmp_path: Path, scheme: Any, width: int, height: int
) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
    page = context.new_page()
    page.goto(f"{server.url}/")
    assert find_barriers(page) == []
    page.click("#try")
    wait_for(page, "exact")
    page.screenshot(path=tmp_path / f"{scheme}-{width}.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert find_barriers(page) == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 20, 24)"
    assert dark == (scheme == "dark")
    context.close()
