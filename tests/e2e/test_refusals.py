import contextlib
import gzip
import io
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import tifffile
from PIL import Image as PillowImage

from tests.e2e.kit import ServerProcess, draw_cells, promise_png, to_png

TIMEOUT = httpx.Timeout(60)
GOOD = to_png(draw_cells(60, 80))


def pictures() -> dict[str, bytes]:
    image = draw_cells(60, 80)
    made = {}
    for kind in ("JPEG", "BMP", "WEBP"):
        buffer = io.BytesIO()
        PillowImage.fromarray(image).save(buffer, kind)
        made[kind] = buffer.getvalue()
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, image, compression="zlib")
    return {"PNG": GOOD, "PNG16": to_png(image.astype(np.uint16) * 9), "TIFF": buffer.getvalue(), **made}


def complex_tiff() -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.ones((8, 8), np.complex64))
    return buffer.getvalue()


def check(answer: httpx.Response, status: int, code: str, detail: str = "") -> None:
    body = answer.json()
    assert (answer.status_code, body["code"], body["status"]) == (status, code, status)
    assert answer.headers["content-type"] == "application/problem+json"
    choices = {"choices"} if code == "ambiguous_axes" else set()
    assert set(body) - choices == {"type", "title", "status", "code", "detail", "request_id"}
    assert body["request_id"] == answer.headers["x-request-id"] != ""
    assert detail in body["detail"]


FILES = {
    "no image": (b"hello", 415, "undecodable_image", "b'hello'"),
    "nothing": (b"", 415, "undecodable_image", "0 bytes"),
    "a gif": (b"GIF89a" + bytes(50), 415, "undecodable_image", "a GIF"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "undecodable_image", "SVG"),
    "too many pixels": (promise_png(9000, 9000), 413, "image_too_large", "9000 x 9000 px"),
    "a bomb": (promise_png(2**31 - 1, 2**31 - 1), 413, "image_too_large", "at most 16,777,216"),
    "complex numbers": (complex_tiff(), 422, "unsupported_image", "complex"),
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_that_cannot_be_segmented_is_refused_with_what_was_found(server: ServerProcess, what: str) -> None:
    data, status, code, detail = FILES[what]
    check(httpx.post(f"{server.url}/segment", files={"file": ("x.png", data)}, timeout=TIMEOUT), status, code, detail)


@pytest.mark.parametrize("kind", pictures())
def test_a_truncated_file_is_undecodable(server: ServerProcess, kind: str) -> None:
    data = pictures()[kind]
    for part in (0.1, 0.5, 0.9):
        cut = data[: int(len(data) * part)]
        answer = httpx.post(f"{server.url}/segment", files={"file": ("x", cut)}, timeout=TIMEOUT)
        check(answer, 415, "undecodable_image")


QUERIES = {
    "threshold=2": "less than or equal to 1",
    "threshold=-0.1": "greater than or equal to 0",
    "threshold=nan": "nan",
    "threshold=inf": "inf",
    "threshold=half": "half",
    "min_area_px=-1": "-1",
    "min_area_px=1e30": "1e30",
    "min_area_px=99999999999999999999": "99999999999999999999",
    "output=outline": "'mask', 'probability', 'labels', 'overlay', 'geojson', 'rois', 'table', 'all' or 'view'",
    "output=": "'mask'",
    "page=-1": "-1",
    "threshold=0.2&threshold=0.3": "threshold: given more than once",
    "treshold=0.5": "treshold: there is no such parameter",
}


@pytest.mark.parametrize("query", QUERIES)
def test_a_parameter_out_of_range_is_refused_with_what_is_allowed(server: ServerProcess, query: str) -> None:
    answer = httpx.post(f"{server.url}/segment?{query}", files={"file": ("x.png", GOOD)}, timeout=TIMEOUT)
    check(answer, 422, "invalid_parameter", QUERIES[query])


def test_a_page_that_is_not_there_is_refused(server: ServerProcess) -> None:
    answer = httpx.post(f"{server.url}/segment?page=5", files={"file": ("x.png", GOOD)}, timeout=TIMEOUT)
    check(answer, 422, "unsupported_image", "page 5")


def test_an_unknown_model_is_refused_with_those_there_are(server: ServerProcess) -> None:
    for path in ("/segment?model=nuclei", "/segment/batch?model=nuclei"):
        answer = httpx.post(server.url + path, files={"file": ("x.png", GOOD)}, timeout=TIMEOUT)
        check(answer, 404, "unknown_model", "best_model, other")
    check(httpx.get(f"{server.url}/models/nuclei", timeout=TIMEOUT), 404, "unknown_model", "best_model, other")
    answer = httpx.post(f"{server.url}/segment?model=../best_model", files={"file": ("x.png", GOOD)}, timeout=TIMEOUT)
    check(answer, 404, "unknown_model")


def test_a_request_that_is_no_form_with_one_file_is_refused(server: ServerProcess) -> None:
    url = f"{server.url}/segment"
    check(httpx.post(url, content=GOOD, timeout=TIMEOUT), 400, "malformed_request", "multipart/form-data")
    check(httpx.post(url, timeout=TIMEOUT), 400, "malformed_request", "multipart/form-data")
    check(httpx.post(url, json={"file": "x"}, timeout=TIMEOUT), 400, "malformed_request", "application/json")
    check(httpx.post(url, data={"file": "x"}, timeout=TIMEOUT), 400, "malformed_request", "urlencoded")
    several = [("file", ("a.png", GOOD)), ("file", ("b.png", GOOD))]
    check(httpx.post(url, files=several, timeout=TIMEOUT), 400, "malformed_request", "/segment/batch")
    check(httpx.post(url, files={"image": ("a.png", GOOD)}, timeout=TIMEOUT), 400, "missing_file", "'image'")
    with_text = httpx.post(url, files={"file": ("a.png", GOOD)}, data={"threshold": "0.5"}, timeout=TIMEOUT)
    check(with_text, 400, "malformed_request", "query")
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    for body in (b"", b"--b", b"--b--\r\n", b"junk", b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
                 b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + GOOD):  # fmt: skip
        assert httpx.post(url, content=body, headers=headers, timeout=TIMEOUT).status_code == 400, body[:60]


def test_a_compressed_body_is_refused(server: ServerProcess) -> None:
    request = httpx.Request("POST", f"{server.url}/segment", files={"file": ("x.png", GOOD)})
    headers = {"Content-Type": request.headers["content-type"], "Content-Encoding": "gzip"}
    answer = httpx.post(
        f"{server.url}/segment", content=gzip.compress(request.read()), headers=headers, timeout=TIMEOUT
    )
    check(answer, 415, "unsupported_encoding", "gzip")


def test_too_many_files_are_refused(server: ServerProcess) -> None:
    files = [("files", (f"{index}.png", GOOD)) for index in range(21)]
    answer = httpx.post(f"{server.url}/segment/batch", files=files, timeout=TIMEOUT)
    check(answer, 413, "upload_too_large", "20 files")


def test_a_body_that_says_it_is_too_large_is_refused_and_the_answer_arrives(server: ServerProcess) -> None:
    files = {"file": ("x.png", bytes(40 * 1024**2))}
    check(httpx.post(f"{server.url}/segment", files=files, timeout=TIMEOUT), 413, "upload_too_large", "25,165,824")


def test_a_chunked_body_that_grows_too_large_is_refused(server: ServerProcess) -> None:
    def body() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(40):
            yield bytes(1024**2)
        yield b"\r\n--b--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = httpx.post(f"{server.url}/segment", content=body(), headers=headers, timeout=TIMEOUT)
    check(answer, 413, "upload_too_large", "25,165,824")


def test_a_length_that_lies_harms_nobody(server: ServerProcess) -> None:
    head = "POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    for length in ("999999999999999", "10", "-5", "1e3"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode() + b"--b\r\n" * 20)
            connection.shutdown(socket.SHUT_WR)
            reply = connection.recv(65536)
        assert reply.startswith((b"HTTP/1.1 413", b"HTTP/1.1 400")), (length, reply[:100])
    assert httpx.post(f"{server.url}/segment", files={"file": ("x.png", GOOD)}, timeout=TIMEOUT).status_code == 200


def test_paths_and_methods_that_are_not_there_get_problems_too(server: ServerProcess) -> None:
    check(httpx.get(f"{server.url}/nothing", timeout=TIMEOUT), 404, "not_found")
    check(httpx.post(f"{server.url}/segment/", timeout=TIMEOUT), 404, "not_found")
    check(httpx.get(f"{server.url}/segment", timeout=TIMEOUT), 405, "method_not_allowed", "POST")
    check(httpx.delete(f"{server.url}/health", timeout=TIMEOUT), 405, "method_not_allowed", "GET")
    check(httpx.options(f"{server.url}/segment", timeout=TIMEOUT), 405, "method_not_allowed", "POST")


def test_head_is_get_without_the_body(server: ServerProcess) -> None:
    for path in ("/readyz", "/models"):
        got, headed = (httpx.request(method, server.url + path, timeout=TIMEOUT) for method in ("GET", "HEAD"))
        assert (headed.status_code, headed.content) == (200, b"")
        assert headed.headers["content-length"] == got.headers["content-length"]


def test_the_request_id_is_the_client_s_if_it_is_sane(server: ServerProcess) -> None:
    def ask(value: str) -> str:
        answer = httpx.get(f"{server.url}/livez", headers={"X-Request-ID": value}, timeout=TIMEOUT)
        return str(answer.headers["x-request-id"])

    assert ask("run-7.image_12") == "run-7.image_12"
    for value in ("", "two words", "x" * 129, "<script>", "a\tb"):
        assert ask(value) != value
        assert len(ask(value)) == 32


def test_reload_without_a_configured_key_is_closed(server: ServerProcess) -> None:
    headers = {"Authorization": "Bearer anything"}
    answer = httpx.post(f"{server.url}/models/best_model/reload", headers=headers, timeout=TIMEOUT)
    check(answer, 403, "reload_closed", "MASKWELL_ADMIN_KEY")


def test_clients_that_vanish_leave_nothing_behind(server: ServerProcess) -> None:
    request = httpx.Request("POST", f"{server.url}/segment", files={"file": ("x.png", to_png(draw_cells(2000, 2000)))})
    body = request.read()
    head = (
        f"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: {request.headers['content-type']}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    whole = head + body
    for sent in (100, len(head), len(head) + len(body) // 2, len(whole), len(whole), len(whole)):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(whole[:sent])
            time.sleep(0.05 if sent == len(whole) else 0.0)
            # leave with a reset, as a killed client does
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        queue = httpx.get(f"{server.url}/health", timeout=TIMEOUT).json()["queue"]
        if (queue["requests"], queue["pixels"], queue["waiting_tiles"]) == (0, 0, 0):
            break
        time.sleep(0.05)
    else:
        pytest.fail(f"still queued: {json.dumps(queue)}")
    assert httpx.post(f"{server.url}/segment", files={"file": ("x.png", GOOD)}, timeout=TIMEOUT).status_code == 200


def test_probes_answer_while_a_large_image_is_under_way(server: ServerProcess) -> None:
    data = to_png(draw_cells(4000, 4000))
    done = threading.Event()

    def segment() -> None:
        with contextlib.suppress(httpx.HTTPError):
            httpx.post(f"{server.url}/segment", files={"file": ("x.png", data)}, timeout=TIMEOUT)
        done.set()

    thread = threading.Thread(target=segment)
    thread.start()
    answered_meanwhile = 0
    with httpx.Client(timeout=TIMEOUT) as client:
        while not done.is_set():
            assert client.get(f"{server.url}/livez").status_code == 200
            answered_meanwhile += not done.is_set()
    thread.join()
    assert answered_meanwhile > 3


def test_a_trailer_that_ends_the_connection_ends_it(server: ServerProcess) -> None:
    form = b"--b\r\nContent-Disposition: form-data; name=file; filename=x\r\n\r\nx\r\n--b--\r\n"
    head = (
        b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:  # kept for longer otherwise
        connection.sendall(head + b"%x\r\n%s\r\n0\r\nConnection: close\r\n\r\n" % (len(form), form))
        reply = b""
        while part := connection.recv(65536):
            reply += part
    assert reply.startswith(b"HTTP/1.1 415")
