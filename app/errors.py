"""What the service refuses and how it says so: the one table from exceptions to HTTP.

model.errors.SegmentationError      what an image or a file of weights may be wrong about
RequestError                        what a request may be wrong about, or the service cannot do now
|- MalformedRequestError            not the multipart form that is asked for
|  `- MissingFileError              the form holds no file in the field that is asked for
|- MalformedHTTPError               not HTTP at all
|- TransferCodingError              HTTP, in a transfer coding other than chunked
|- HeadTooLargeError, HeadTimeoutError, UploadTimeoutError
|- UnsupportedEncodingError         the body is compressed as a whole
|- InvalidParameterError            a value out of range
|- UploadTooLargeError              more bytes, or more files, than allowed
|- NotFoundError, MethodNotAllowedError
|- UnknownModelError                no model of that name
|- KeyMissingError, AdminOnlyError, ReloadClosedError
|- WeightsRefusedError              a reload whose file of weights cannot be used
|- QueueFullError                   later may work; says when
|  `- RateLimitedError              this client has asked for too much
|- NotReadyError, DrainingError     another replica may work
|- OutOfMemoryError                 the device has no room even for one tile, or the machine for an image
|- DeadlineExceededError            it waited too long
`- InferenceError                   the network answered with nonsense
"""

from dataclasses import dataclass
from http import HTTPStatus

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.notes import current_notes
from app.schemas import OpenChoices, Problem
from model.errors import (
    AmbiguousAxesError,
    ImageError,
    ImageTooLargeError,
    SegmentationError,
    UndecodableImageError,
    WeightsError,
)

PROBLEM_JSON = "application/problem+json"


class RequestError(Exception):
    """Base of what the service refuses on purpose; its text is fit to be shown to the user."""

    def headers(self) -> dict[str, str]:
        """What the answer's headers say of it."""
        return {}


class MalformedRequestError(RequestError):
    """The body is not the multipart form that is asked for."""


class MissingFileError(MalformedRequestError):
    """The form holds no file in the field that is asked for."""


class MalformedHTTPError(RequestError):
    """What came is no HTTP."""


class TransferCodingError(RequestError):
    """The body comes in a transfer coding that is not understood."""


class HeadTooLargeError(RequestError):
    """Too many headers, or too long ones."""


class HeadTimeoutError(RequestError):
    """The headers did not come in time."""


class UploadTimeoutError(RequestError):
    """The body did not come in time."""


class UnsupportedEncodingError(RequestError):
    """The body has a Content-Encoding."""


class InvalidParameterError(RequestError):
    """A query or path value is out of range or unknown."""


class UploadTooLargeError(RequestError):
    """The body has more bytes, or more files, than allowed."""


class UnknownModelError(RequestError):
    """No model has that name."""


class KeyMissingError(RequestError):
    """A key is missing or wrong."""

    def headers(self) -> dict[str, str]:
        """Which kind of key is asked for."""
        return {"WWW-Authenticate": "Bearer"}


class AdminOnlyError(RequestError):
    """The key is good, but not an admin's."""

    def headers(self) -> dict[str, str]:
        """What is wrong with the key (RFC 6750)."""
        return {"WWW-Authenticate": 'Bearer error="insufficient_scope"'}


class ReloadClosedError(RequestError):
    """No admin key is configured, so nobody may reload."""


class WeightsRefusedError(RequestError):
    """The file of weights cannot be used; the old one keeps serving."""


class QueueFullError(RequestError):
    """No room for the image now.

    Args:
        detail: what is full.
        retry_after_s: after how many seconds there should be room.
    """

    def __init__(self, detail: str, *, retry_after_s: int) -> None:
        super().__init__(detail)
        self._retry_after_s = retry_after_s

    def headers(self) -> dict[str, str]:
        """When there should be room."""
        return {"Retry-After": str(self._retry_after_s)}


class RateLimitedError(QueueFullError):
    """This client has asked for more than it may in a minute."""


class NotReadyError(RequestError):
    """The models are not loaded, or the engine has stopped."""

    def headers(self) -> dict[str, str]:
        """When it may work."""
        return {"Retry-After": "5"}


class DrainingError(RequestError):
    """The service is shutting down."""

    def headers(self) -> dict[str, str]:
        """When another replica, or this one after a restart, may work."""
        return {"Retry-After": "1"}


class OutOfMemoryError(RequestError):
    """The device has no room even for one tile, or the machine none for an image."""

    def headers(self) -> dict[str, str]:
        """When it may work."""
        return {"Retry-After": "5"}


class DeadlineExceededError(RequestError):
    """The request waited longer than allowed."""


class InferenceError(RequestError):
    """The network answered this image with NaN or infinity."""


@dataclass(frozen=True)
class Answer:
    """How a kind of error is answered: HTTP status, stable code, title."""

    status: int
    code: str
    title: str


# Looked up along the class's bases, so a subclass without a line of its own is answered as its base.
ANSWERS: dict[type[Exception], Answer] = {
    MalformedRequestError: Answer(400, "malformed_request", "The request is not a form with a file"),
    MissingFileError: Answer(400, "missing_file", "The form holds no file"),
    MalformedHTTPError: Answer(400, "malformed_http", "The request is not HTTP"),
    KeyMissingError: Answer(401, "key_required", "The key is missing or wrong"),
    AdminOnlyError: Answer(403, "admin_only", "The key may not do that"),
    ReloadClosedError: Answer(403, "reload_closed", "Reloading over HTTP is closed"),
    UnknownModelError: Answer(404, "unknown_model", "There is no such model"),
    HeadTimeoutError: Answer(408, "head_timeout", "The headers came too slowly"),
    UploadTimeoutError: Answer(408, "upload_timeout", "The upload came too slowly"),
    WeightsRefusedError: Answer(409, "weights_refused", "The weights cannot be used"),
    UploadTooLargeError: Answer(413, "upload_too_large", "The upload is too large"),
    ImageTooLargeError: Answer(413, "image_too_large", "The image is too large"),
    UndecodableImageError: Answer(415, "undecodable_image", "Not an image that can be read"),
    UnsupportedEncodingError: Answer(415, "unsupported_encoding", "The body is compressed"),
    AmbiguousAxesError: Answer(422, "ambiguous_axes", "The image's axes are ambiguous"),
    ImageError: Answer(422, "unsupported_image", "The image cannot be segmented"),
    InvalidParameterError: Answer(422, "invalid_parameter", "A parameter is out of range"),
    QueueFullError: Answer(429, "queue_full", "The queue is full"),
    RateLimitedError: Answer(429, "rate_limited", "Too much was asked for in a minute"),
    HeadTooLargeError: Answer(431, "head_too_large", "The headers are too large"),
    InferenceError: Answer(500, "inference_failed", "The network failed on this image"),
    TransferCodingError: Answer(501, "unknown_transfer_coding", "The transfer coding is not understood"),
    NotReadyError: Answer(503, "not_ready", "The service is not ready"),
    DrainingError: Answer(503, "draining", "The service is shutting down"),
    OutOfMemoryError: Answer(503, "out_of_memory", "Out of memory"),
    DeadlineExceededError: Answer(504, "deadline_exceeded", "The request waited too long"),
}
# These never reach a client as themselves: start-up and reload handle them.
NOT_ANSWERED: frozenset[type[Exception]] = frozenset({WeightsError, SegmentationError, RequestError})
INTERNAL = Answer(500, "internal_error", "Internal error")
# What Starlette raises by itself.
HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}


def find_answer(error: Exception) -> Answer:
    """The line of the table for an exception; `INTERNAL` for one that was not foreseen."""
    for kind in type(error).__mro__:
        if kind in ANSWERS:
            return ANSWERS[kind]
    return INTERNAL


def to_problem(error: Exception, request_id: str) -> tuple[Problem, dict[str, str]]:
    """The body and the headers for any exception; what was not foreseen shows nothing of itself."""
    headers: dict[str, str] = {}
    if isinstance(error, RequestValidationError):
        answer, detail = ANSWERS[InvalidParameterError], _describe_mistakes(error)
    elif isinstance(error, HTTPException):
        status = error.status_code
        phrase = HTTPStatus(status).phrase
        answer = Answer(status, HTTP_CODES.get(status, "http_error"), phrase)
        headers.update(error.headers or {})
        detail = str(error.detail)
        if status == 405:
            detail = f"allowed here: {headers.get('Allow', headers.get('allow', ''))}"
    else:
        answer = find_answer(error)
        detail = "internal error" if answer is INTERNAL else str(error)
        if isinstance(error, RequestError):
            headers.update(error.headers())
    choices = error.choices if isinstance(error, AmbiguousAxesError) else None
    problem = Problem(
        type=f"urn:maskwell:problem:{answer.code}",
        title=answer.title,
        status=answer.status,
        code=answer.code,
        detail=detail,
        request_id=request_id,
        choices=None if choices is None else OpenChoices.model_validate(choices),
    )
    return problem, headers


def problem_response(error: Exception, request_id: str) -> Response:
    """The whole answer for any exception."""
    problem, headers = to_problem(error, request_id)
    current_notes().reason = problem.code
    return Response(
        problem.model_dump_json(exclude_none=True),
        status_code=problem.status,
        headers=dict(headers),
        media_type=PROBLEM_JSON,
    )


async def handle_error(request: Request, error: Exception) -> Response:
    """Answer a foreseen exception; registered for each family in main.py."""
    return problem_response(error, request.scope["request_id"])


def _describe_mistakes(error: RequestValidationError) -> str:
    parts = []
    for item in error.errors():
        *_, name = item["loc"]
        if item["type"] == "extra_forbidden":
            parts.append(f"{name}: there is no such parameter")
        else:
            words = item["msg"].removeprefix("Value error, ")  # the framework's word for our own checks
            parts.append(f"{name}: {words}; found {str(item.get('input'))[:100]!r}")
    return "; ".join(parts[:10])
