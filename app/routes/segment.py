"""POST /segment, POST /segment/batch and POST /preview."""

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from app.docs import BATCH_ANSWERS, PREVIEW_ANSWERS, SEGMENT_ANSWERS, form_body
from app.errors import InvalidParameterError
from app.schemas import PreviewQuery, SegmentQuery
from app.service import Result, Service
from app.uploads import read_uploads

router = APIRouter(tags=["segment"])
T = TypeVar("T")


@router.post(
    "/segment",
    summary="Segment one image",
    response_class=Response,
    responses=SEGMENT_ANSWERS,
    openapi_extra=form_body("file", several=False),
)
async def segment(request: Request, query: Annotated[SegmentQuery, Query()]) -> Response:
    """Send an image in the form field `file`; get the result in the same height and width.

    PNG, JPEG, TIFF, BMP, WebP and NumPy's .npy are read.
    """
    _refuse_repeats(request)
    service: Service = request.app.state.service
    model = service.registry.get(query.model)
    _check_room(service)
    with service.uploads.hold() as held:
        [upload] = await read_uploads(request.headers, request.stream(), held, field="file", max_files=1)
        return _respond(await _until_gone(request, service.segment(upload, query, model)))


@router.post(
    "/segment/batch",
    summary="Segment several images",
    response_class=Response,
    responses=BATCH_ANSWERS,
    openapi_extra=form_body("files", several=True),
)
async def segment_batch(request: Request, query: Annotated[SegmentQuery, Query()]) -> Response:
    """Send several images in the form field `files`; get a zip with one result a file.

    A file that is refused stands in the zip's `errors.json` and does not keep the others from being segmented.
    """
    _refuse_repeats(request)
    service: Service = request.app.state.service
    model = service.registry.get(query.model)
    _check_room(service)
    with service.uploads.hold() as held:
        uploads = await read_uploads(
            request.headers, request.stream(), held, field="files", max_files=service.settings.max_files
        )
        return _respond(await _until_gone(request, service.segment_batch(uploads, query, model)))


@router.post(
    "/preview",
    summary="See one image",
    response_class=Response,
    responses=PREVIEW_ANSWERS,
    openapi_extra=form_body("file", several=False),
)
async def preview(request: Request, query: Annotated[PreviewQuery, Query()]) -> Response:
    """Send an image in the form field `file`; get it as an 8-bit RGB PNG, stretched so that something can be seen.

    For what cannot show a TIFF or 16 bits, such as a browser. Its pixels lie where the mask's do: an orientation in
    the file's metadata is not applied.
    """
    _refuse_repeats(request)
    service: Service = request.app.state.service
    _check_room(service)
    with service.uploads.hold() as held:
        [upload] = await read_uploads(request.headers, request.stream(), held, field="file", max_files=1)
        return _respond(await _until_gone(request, service.preview(upload, query)))


def _refuse_repeats(request: Request) -> None:
    """A parameter given twice could mean either value, and the framework would quietly take the last."""
    names = [name for name, _ in request.query_params.multi_items()]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InvalidParameterError(f"{', '.join(repeated)[:200]}: given more than once")


def _check_room(service: Service) -> None:
    service.lifecycle.check()
    service.admission.check()


async def _until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, and stop it when the client goes away."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _respond(result: Result) -> Response:
    timing = result.timing
    stages = {"queue": timing.queue, "decode": timing.decode, "infer": timing.infer, "encode": timing.encode}
    server_timing = ", ".join(f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in stages.items())
    headers = {**result.provenance, "Server-Timing": server_timing}
    return Response(result.body, media_type=result.media_type, headers=headers)
