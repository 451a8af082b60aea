import json

import pytest
from starlette.exceptions import HTTPException

import app.errors as errors
import model.errors as model_errors
from app.docs import DETAILS
from app.errors import ANSWERS, INTERNAL, NOT_ANSWERED, QueueFullError, find_answer, problem_response, to_problem
from model.errors import AmbiguousAxesError, Choices, ImageTooLargeError


def family(base: type[Exception]) -> set[type[Exception]]:
    return {base}.union(
        *(family(kind) for kind in base.__subclasses__() if kind.__module__ in ("app.errors", "model.errors"))
    )


def test_every_domain_error_has_a_status() -> None:
    kinds = family(errors.RequestError) | family(model_errors.SegmentationError)
    assert len(kinds) > 20
    for kind in kinds - NOT_ANSWERED:
        assert any(base in ANSWERS for base in kind.__mro__), kind


def test_codes_are_unique_and_statuses_are_errors() -> None:
    codes = [answer.code for answer in ANSWERS.values()]
    assert len(set(codes)) == len(codes)
    assert all(400 <= answer.status < 600 for answer in ANSWERS.values())


def test_every_code_has_an_example_in_the_documentation() -> None:
    assert set(DETAILS) == {answer.code for answer in ANSWERS.values()} | {INTERNAL.code}


def test_a_subclass_is_answered_as_its_base() -> None:
    class Odd(model_errors.ImageTooLargeError):
        pass

    assert find_answer(Odd("x")).code == "image_too_large"


@pytest.mark.parametrize(
    "kind", [ValueError, KeyError, MemoryError, model_errors.WeightsError, model_errors.SegmentationError]
)
def test_what_was_not_foreseen_shows_nothing_of_itself(kind: type[Exception]) -> None:
    response = problem_response(kind("/secret/path"), "id-1")
    assert response.status_code == 500
    assert b"secret" not in response.body
    assert json.loads(bytes(response.body))["code"] == "internal_error"


def test_a_problem_says_what_where_and_when_to_come_back() -> None:
    response = problem_response(QueueFullError("5 are waiting", retry_after_s=7), "id-1")
    assert response.headers["retry-after"] == "7"
    assert response.headers["content-type"] == "application/problem+json"
    assert json.loads(bytes(response.body)) == {
        "type": "urn:maskwell:problem:queue_full",
        "title": "The queue is full",
        "status": 429,
        "code": "queue_full",
        "detail": "5 are waiting",
        "request_id": "id-1",
    }


def test_starlette_s_own_errors_keep_their_status_and_headers() -> None:
    problem, headers = to_problem(HTTPException(405, headers={"Allow": "POST"}), "id-1")
    assert (problem.status, problem.code, problem.detail) == (405, "method_not_allowed", "allowed here: POST")
    assert headers == {"Allow": "POST"}
    assert to_problem(HTTPException(418), "x")[0].code == "http_error"


def test_what_a_file_leaves_open_is_said_for_programs_too() -> None:
    choices = Choices(6, "CZ", 2, ("DAPI", "GFP"), ("ZYX", "CYX"))
    problem, _ = to_problem(AmbiguousAxesError("6 planes", choices), "1")
    assert json.loads(bytes(problem_response(AmbiguousAxesError("6 planes", choices), "1").body))["choices"] == {
        "planes": 6,
        "plane_axes": "CZ",
        "channels": 2,
        "channel_names": ["DAPI", "GFP"],
        "axes": ["ZYX", "CYX"],
    }
    assert problem.detail == "6 planes"
    assert "choices" not in json.loads(bytes(problem_response(ImageTooLargeError("too large"), "1").body))
