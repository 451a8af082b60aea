import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from app.admission import Admission
from app.errors import MalformedRequestError, MissingFileError, QueueFullError, UploadTooLargeError
from app.uploads import Upload, UploadBudget, read_uploads

HEADERS = Headers({"content-type": "multipart/form-data; boundary=frontier"})


def form(*parts: tuple[str, bytes]) -> bytes:
    body = b"".join(
        b"--frontier\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + data + b"\r\n"
        for head, data in parts
    )
    return body + b"--frontier--\r\n"


def read(
    chunks: Iterable[bytes], *, max_files: int = 5, budget: UploadBudget | None = None, headers: Headers = HEADERS
) -> list[Upload]:
    async def stream() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    async def main() -> list[Upload]:
        with (budget or UploadBudget(10**9, lambda _: 1)).hold() as held:
            return await read_uploads(headers, stream(), held, field="file", max_files=max_files)

    return asyncio.run(main())


ALMOST_FRONTIERS = st.lists(st.sampled_from([b"\r\n", b"--frontier", b"--", b"\r", b"\n", b"front", b"x", b"\0"]))


@settings(deadline=None)
@given(pieces=ALMOST_FRONTIERS, cuts=st.lists(st.integers(1, 60), min_size=1, max_size=40))
def test_bytes_arrive_whole_however_they_are_cut(pieces: list[bytes], cuts: list[int]) -> None:
    data = b"".join(pieces)
    if b"\r\n--frontier" in b"\r\n" + data:
        return  # a client picks a boundary that its data does not hold
    body = form(('name="file"; filename="a.png"', data + b"!"))
    chunks = []
    for cut in cuts:
        chunks.append(body[:cut])
        body = body[cut:]
    assert read([*chunks, body]) == [Upload("a.png", data + b"!")]


def test_files_come_in_the_order_of_the_form_with_their_names() -> None:
    body = form(('name="file"; filename="b.png"', b"1"), ('name="file"; filename="ä.png"', b"2"))
    assert read([body]) == [Upload("b.png", b"1"), Upload("ä.png", b"2")]


@pytest.mark.parametrize("cut", [1, 20, 60, -5, -14])
def test_a_form_that_is_cut_short_is_refused(cut: int) -> None:
    with pytest.raises(MalformedRequestError, match="cut short"):
        read([form(('name="file"; filename="b.png"', b"12345"))[:cut]])


@pytest.mark.parametrize(
    ("content_type", "found"),
    [
        ("image/png", "image/png"),
        ("", "''"),
        ("multipart/form-data", "no boundary"),
        ("multipart/form-data; boundary=", "no boundary"),
        ("multipart/mixed; boundary=frontier", "multipart/mixed"),
        ("multipart/form-data; boundary=" + "x" * 300, "300"),
    ],
)
def test_another_content_type_is_refused(content_type: str, found: str) -> None:
    with pytest.raises(MalformedRequestError, match=found):
        read([form()], headers=Headers({"content-type": content_type}))


def test_a_form_with_nothing_chosen_has_no_file() -> None:
    with pytest.raises(MissingFileError, match="no file"):
        read([form(('name="file"; filename=""', b""))])
    with pytest.raises(MissingFileError, match="no file"):
        read([form()])


def test_text_is_no_file() -> None:
    with pytest.raises(MissingFileError, match="text"):
        read([form(('name="file"', b"abc"))])


def test_parts_are_counted_before_their_bytes_are_kept() -> None:
    def endless() -> Iterable[bytes]:
        while True:
            yield b'--frontier\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n'

    with pytest.raises(UploadTooLargeError, match="5 files"):
        read(endless())
    with pytest.raises(MalformedRequestError, match="/segment/batch"):
        read(endless(), max_files=1)


def test_endless_headers_are_refused() -> None:
    with pytest.raises(MalformedRequestError, match="damaged"):
        read([b"--frontier\r\n", b"X-Long: " + b"y" * 100_000])
    with pytest.raises(MalformedRequestError, match="damaged"):
        read([b"--frontier\r\n" + b"X-Many: y\r\n" * 100_000])


def test_all_uploads_together_are_bounded_and_one_alone_is_let_through() -> None:
    budget = UploadBudget(100, lambda _: 1)
    body = form(('name="file"; filename="a"', bytes(500)))
    assert len(read([body[:200], body[200:]], budget=budget)) == 1
    assert budget.held_bytes == 0
    with budget.hold() as other:
        other.add(50)
        with pytest.raises(QueueFullError, match="50 of 100 bytes"):
            read([body], budget=budget)
        assert budget.held_bytes == 50
    assert budget.held_bytes == 0


def test_a_refused_upload_is_told_when_the_work_that_holds_its_room_should_be_done() -> None:
    admission = Admission(max_pixels=10**9, max_requests=10)
    budget = UploadBudget(100, admission.estimate_wait_s)

    def retry_after(n_bytes: int) -> int:
        with budget.hold() as held:
            held.add(10)
            with pytest.raises(QueueFullError) as refused:
                held.add(n_bytes)
        return int(refused.value.headers()["Retry-After"])

    with budget.hold() as others, admission.reserve(1000, 1000) as work:
        others.add(80)
        assert retry_after(50) == 1  # nobody knows yet how quick it is
        admission.throughput.observe(10, 1.0)
        assert retry_after(50) == 50  # half of what is held, at 10 pixels a second
        assert retry_after(5000) == 100
        work.done_px = 900
        assert retry_after(50) == 5
    with budget.hold() as others:
        others.add(80)
        assert retry_after(50) == 1  # the others are still sending
