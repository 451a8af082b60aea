"""Read the files of a multipart form into memory, within limits; nothing touches a disk."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers

from app.errors import (
    MalformedRequestError,
    MissingFileError,
    QueueFullError,
    UnsupportedEncodingError,
    UploadTooLargeError,
)

if TYPE_CHECKING:  # it exists for type checkers only
    from python_multipart.multipart import MultipartCallbacks


@dataclass(frozen=True)
class Upload:
    """A file of a form: its name as the client gave it, which is never used as a path, and its bytes."""

    name: str
    data: bytes


class UploadBudget:
    """Bounds the bytes that all uploads together hold.

    Args:
        max_bytes: above it an upload is refused; one alone is always let through.
        estimate_wait_s: seconds in which that share (0..1) of the work taken on should be done, and its uploads let go.
    """

    def __init__(self, max_bytes: int, estimate_wait_s: Callable[[float], int]) -> None:
        self._max_bytes = max_bytes
        self._estimate_wait_s = estimate_wait_s
        self.held_bytes = 0

    @contextmanager
    def hold(self) -> Iterator["HeldBytes"]:
        """Count the bytes of one request, until it is answered."""
        held = HeldBytes(self)
        try:
            yield held
        finally:
            self.held_bytes -= held.n_bytes

    def take(self, held: "HeldBytes", n_bytes: int) -> None:
        """Add to what a request holds."""
        others = self.held_bytes - held.n_bytes
        surplus = self.held_bytes + n_bytes - self._max_bytes
        if others and surplus > 0:
            # what others are still sending is not in the estimate: only they know how long it takes them
            raise QueueFullError(
                f"uploads under way hold {self.held_bytes:,} of {self._max_bytes:,} bytes",
                retry_after_s=self._estimate_wait_s(min(surplus / others, 1.0)),
            )
        self.held_bytes += n_bytes
        held.n_bytes += n_bytes


class HeldBytes:
    """What one request holds of an UploadBudget."""

    def __init__(self, budget: UploadBudget) -> None:
        self._budget = budget
        self.n_bytes = 0

    def add(self, n_bytes: int) -> None:
        """Take more.

        Raises:
            QueueFullError: the budget is spent.
        """
        self._budget.take(self, n_bytes)


async def read_uploads(
    headers: Headers, stream: AsyncIterator[bytes], held: HeldBytes, *, field: str, max_files: int
) -> list[Upload]:
    """Take the files out of a multipart/form-data body.

    Args:
        headers: of the request.
        stream: the body; whoever makes it bounds its bytes.
        held: counts what is kept.
        field: name of the only field that is allowed.
        max_files: files allowed in it.

    Returns:
        At least one file, in the order of the form.

    Raises:
        MalformedRequestError: no multipart form, a damaged one, or one with other fields.
        MissingFileError: the form has no file in `field`.
        UnsupportedEncodingError: the body is compressed.
        UploadTooLargeError: more than `max_files`.
        QueueFullError: the budget is spent.
    """
    boundary = _find_boundary(headers, field)
    form = _Form(field, max_files)
    try:
        parser = MultipartParser(boundary, form.callbacks())
        async for chunk in stream:
            held.add(len(chunk))
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise MalformedRequestError(f"the multipart form is damaged: {error}") from error
    if not form.ended:
        raise MalformedRequestError("the multipart form is cut short: its closing boundary is missing")
    if not form.uploads:
        raise MissingFileError(f"the form has no file; send one in the field {field!r}")
    return form.uploads


def _find_boundary(headers: Headers, field: str) -> bytes:
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedEncodingError(f"Content-Encoding {encoding[:50]!r}; send the form as it is")
    media_type, options = parse_options_header(headers.get("content-type", ""))
    if media_type.lower() != b"multipart/form-data":
        found = headers.get("content-type", "none")[:100]
        raise MalformedRequestError(
            f"Content-Type {found!r}; send multipart/form-data with the image in the field {field!r}, "
            f"as curl does with -F {field}=@image.png"
        )
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise MalformedRequestError("the Content-Type names no boundary")
    return boundary


class _Form:
    """Collects the parts that a MultipartParser reports."""

    def __init__(self, field: str, max_files: int) -> None:
        self.uploads: list[Upload] = []
        self.ended = False
        self._field = field
        self._max_files = max_files
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._name = ""
        self._chunks: list[bytes] = []

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_header_name,
            "on_header_value": self._add_header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin_part(self) -> None:
        self._disposition = b""
        self._chunks = []

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise MalformedRequestError("a part of the form has no name")
        name = options[b"name"].decode("utf-8", "replace")
        is_file = b"filename" in options
        if name != self._field:
            if is_file:
                raise MissingFileError(f"the file is in the field {name[:100]!r}; send it in {self._field!r}")
            raise MalformedRequestError(
                f"the form has a field {name[:100]!r}; it may hold {self._field!r} only, parameters go into the query"
            )
        if not is_file:
            raise MissingFileError(f"the field {self._field!r} holds text, not a file: its filename is missing")
        if len(self.uploads) == self._max_files:
            if self._max_files == 1:
                raise MalformedRequestError("several files; POST /segment takes one, POST /segment/batch takes more")
            raise UploadTooLargeError(f"more than {self._max_files} files, which is the most allowed")
        self._name = options[b"filename"].decode("utf-8", "replace")

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._chunks.append(data[start:end])

    def _end_part(self) -> None:
        data = b"".join(self._chunks)
        self._chunks = []
        if self._name or data:  # a browser's form with nothing chosen sends neither
            self.uploads.append(Upload(self._name, data))

    def _end(self) -> None:
        self.ended = True
