"""What the OpenAPI document says beyond the signatures: forms, files, problems with examples."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app.errors import ANSWERS, PROBLEM_JSON
from app.schemas import FileProblem, Health, OpenChoices, Problem
from model.outputs import SUFFIXES

Answers = dict[int | str, dict[str, Any]]

# An example of each problem: what a reader of the document would want to recognise.
DETAILS = {
    "malformed_request": "several files; POST /segment takes one, POST /segment/batch takes more",
    "missing_file": "the form has no file; send one in the field 'file'",
    "malformed_http": "this is not HTTP/1.1 as RFC 9112 has it",
    "unknown_transfer_coding": "Transfer-Encoding 'gzip, chunked'; chunked alone is understood",
    "head_timeout": "the headers were not there after 10 s",
    "upload_timeout": "nothing came for 30 s; 65,536 bytes were here",
    "head_too_large": "more than 100 headers",
    "key_required": "send an API key: Authorization: Bearer KEY, or X-API-Key: KEY",
    "admin_only": "the key 'alice' is a user's; this needs an admin's",
    "reload_closed": "no admin key is configured; the operator sets MASKWELL_ADMIN_KEY, or one in the keys",
    "unknown_model": "no model 'nuclei'; there are best_model, membranes",
    "weights_refused": "best_model.pth: outc.conv.bias holds NaN or infinity",
    "upload_too_large": "a body of 200,000,000 bytes; at most 134,217,728 bytes",
    "image_too_large": "9000 x 9000 px = 81,000,000 pixels; at most 67,108,864",
    "undecodable_image": "the image is damaged or cut short: image file is truncated",
    "unsupported_encoding": "Content-Encoding 'gzip'; send the form as it is",
    "ambiguous_axes": "TIFF with axes QYX of shape (5, 64, 64): 5 planes; say which one is meant by page=0 to page=4, "
    "or all of them by page=all; the file does not name all of its axes; say what they are by axes=ZYX or axes=CYX",
    "unsupported_image": "page 12; the file has pages 0 to 11",
    "invalid_parameter": "threshold: Input should be less than or equal to 1; found '50'",
    "queue_full": "256 requests are waiting, which is the most allowed",
    "rate_limited": "60 requests a minute are allowed, and no more are left now",
    "inference_failed": "the network answered with NaN or infinity",
    "internal_error": "internal error",
    "not_ready": "the models are being loaded",
    "draining": "the service is shutting down and takes no new requests",
    "out_of_memory": "cuda:0 has no memory for one tile",
    "deadline_exceeded": "the image waited 300 s, which is the longest allowed",
}
CHOICES = OpenChoices(planes=5, plane_axes="Q", channels=0, channel_names=[], axes=["ZYX", "TYX", "CYX"])
REQUEST_ID_HEADER = {"description": "The client's own, if it was sane, or a new one.", "schema": {"type": "string"}}
RESULT_HEADERS = {
    "X-Request-ID": REQUEST_ID_HEADER,
    "X-Model": {"description": "Name of the model.", "schema": {"type": "string"}},
    "X-Model-Version": {"description": "SHA-256 of its file.", "schema": {"type": "string"}},
    "X-Threshold": {"description": "Cell probability that counts as foreground.", "schema": {"type": "number"}},
    "X-Pixel-Size-Um": {
        "description": "Width and height of a pixel in micrometres, `0.325 x 0.325`, where the file says them.",
        "schema": {"type": "string"},
    },
    "X-Quality": {
        "description": "`ok`, or signs that the answer may not be trusted, by commas: saturated, out_of_focus, empty, "
        "low_confidence, unusual_intensity. Of a batch those of any file; each has its own in its entry's comment.",
        "schema": {"type": "string"},
    },
    "Server-Timing": {"description": "queue, decode, infer and encode, in ms.", "schema": {"type": "string"}},
}
KEY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same in another header."},
}
BINARY = {"schema": {"type": "string", "format": "binary"}}


def problems(*codes: str) -> Answers:
    """The answers of an operation for these codes, by status."""
    answers: Answers = {}
    for answer in ANSWERS.values():
        if answer.code not in codes:
            continue
        example = Problem(
            type=f"urn:maskwell:problem:{answer.code}",
            title=answer.title,
            status=answer.status,
            code=answer.code,
            detail=DETAILS[answer.code],
            request_id="3f0c7f2b5d2a4b0f9a7f2f6b0d7b1c55",
            choices=CHOICES if answer.code == "ambiguous_axes" else None,
        )
        entry = answers.setdefault(
            answer.status,
            {
                "description": "",
                "headers": {"X-Request-ID": REQUEST_ID_HEADER},
                "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}},
            },
        )
        entry["content"][PROBLEM_JSON]["examples"][answer.code] = {
            "summary": answer.title,
            "value": example.model_dump(exclude_none=True),
        }
        titles = (entry["description"], answer.title)
        entry["description"] = "; ".join(title for title in titles if title)
        if answer.status == 401:
            asked = {"description": "Bearer: which kind of key is asked for.", "schema": {"type": "string"}}
            entry["headers"] = {**entry["headers"], "WWW-Authenticate": asked}
        if answer.status in (429, 503):
            retry = {"description": "Seconds until it may work.", "schema": {"type": "integer"}}
            entry["headers"] = {**entry["headers"], "Retry-After": retry}
    return answers


def form_body(field: str, *, several: bool) -> dict[str, Any]:
    """The request body of an operation that takes files."""
    file: dict[str, Any] = {
        "type": "string",
        "format": "binary",
        "description": "PNG, JPEG, TIFF, BMP, WebP or NumPy's .npy.",
    }
    schema: dict[str, Any] = {"type": "array", "items": file, "minItems": 1} if several else file
    form = {"type": "object", "properties": {field: schema}, "required": [field], "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}


_COMMON = (
    "malformed_request", "missing_file", "unknown_model", "upload_too_large", "upload_timeout", "unsupported_encoding",
    "invalid_parameter", "key_required", "rate_limited", "queue_full", "not_ready", "draining",
)  # fmt: skip
SEGMENT_ANSWERS: Answers = {
    200: {
        "description": "The result; same height and width as the upload. Of several planes a multi-page TIFF.",
        "headers": RESULT_HEADERS,
        "content": dict.fromkeys(SUFFIXES, BINARY),
    },
    **problems(
        *_COMMON, "image_too_large", "undecodable_image", "ambiguous_axes", "unsupported_image", "inference_failed",
        "out_of_memory", "deadline_exceeded",
    ),
}  # fmt: skip
BATCH_ANSWERS: Answers = {
    200: {
        "description": "A zip with `NAME_OUTPUT.SUFFIX` for each file, and `errors.json` if some were refused. The "
        "comment of each entry has the file's X-Quality, X-Pixel-Size-Um and what made it, a line `name=value` each.",
        "headers": RESULT_HEADERS,
        "content": {"application/zip": BINARY},
    },
    **problems(*_COMMON),
}
PREVIEW_ANSWERS: Answers = {
    200: {
        "description": "8-bit RGB PNG; same height and width as the upload.",
        "headers": {name: RESULT_HEADERS[name] for name in ("X-Request-ID", "Server-Timing")},
        "content": {"image/png": BINARY},
    },
    **problems(
        *(code for code in _COMMON if code != "unknown_model"), "image_too_large", "undecodable_image",
        "ambiguous_axes", "unsupported_image", "deadline_exceeded",
    ),
}  # fmt: skip
HEALTH_ANSWERS: Answers = {
    503: {"model": Health, "description": "Not ready; the same body."},
    **problems("key_required"),
}
_TEXT = {"schema": {"type": "string"}}
METRICS_ANSWERS: Answers = {
    200: {
        "description": "Every number there is, in Prometheus's text format.",
        "content": {"text/plain": _TEXT, "application/openmetrics-text": _TEXT},
    },
    **problems("key_required"),
}
LIVE_ANSWERS = problems("not_ready")
READY_ANSWERS = problems("not_ready", "draining")
LIST_ANSWERS = problems("key_required")
MODEL_ANSWERS = problems("key_required", "unknown_model", "invalid_parameter")
RELOAD_ANSWERS = problems(
    "key_required", "admin_only", "reload_closed", "unknown_model", "weights_refused", "invalid_parameter", "not_ready",
    "draining",
)  # fmt: skip


def describe(app: FastAPI, *, keys_required: bool) -> dict[str, Any]:
    """The OpenAPI document of the app; says which operations need a key as the service is run."""
    document = get_openapi(
        title=app.title, version=app.version, summary=app.summary, description=app.description, routes=app.routes
    )
    document["servers"] = [
        {"url": "./", "description": "Where this document lies, whatever path a proxy put it under."}
    ]
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for body in (Problem, FileProblem):
        schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
        schema.pop("$defs", None)
        schemas[body.__name__] = schema
    components["securitySchemes"] = KEY_SCHEMES
    for operations in document["paths"].values():
        for operation in operations.values():
            always = "403" in operation["responses"]
            if always or (keys_required and "401" in operation["responses"]):
                operation["security"] = [{name: []} for name in KEY_SCHEMES]
    return document
