"""GET /health, /livez and /readyz: they wait for nothing; the last two need no key."""

import os
import time

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from app import __version__
from app.docs import HEALTH_ANSWERS, LIVE_ANSWERS, READY_ANSWERS
from app.errors import DrainingError, NotReadyError
from app.peers import Beat
from app.schemas import Health, Probe, QueueState, Workers, WorkerState
from app.service import Service

router = APIRouter(tags=["health"])


@router.get("/livez", summary="Is the process alive?", responses=LIVE_ANSWERS)
async def livez(request: Request) -> Probe:
    """200 as long as the process can work, also while it is draining; 503 tells an orchestrator to restart it."""
    service: Service = request.app.state.service
    if service.status == "failed":
        raise NotReadyError(service.batcher.failure or "the engine has stopped")
    return Probe(status="live")


@router.get("/readyz", summary="May it be sent requests?", responses=READY_ANSWERS)
async def readyz(request: Request) -> Probe:
    """200 once the models are loaded and warm; 503 as soon as the process is asked to stop."""
    service: Service = request.app.state.service
    status = service.status
    if status == "draining":
        raise DrainingError("the service is shutting down")
    if status != "ready":
        raise NotReadyError(
            "the models are being loaded"
            if status == "starting"
            else service.batcher.failure or "the engine has stopped"
        )
    return Probe(status="ready")


@router.get("/health", summary="State of the service", response_model=Health, responses=HEALTH_ANSWERS)
async def health(request: Request) -> JSONResponse:
    """What serves, on what, how much waits, and what came of the last reload; 503 unless ready."""
    service: Service = request.app.state.service
    status = service.status
    default = service.registry.default
    runtime = default.segmenter.runtime if default else None
    body = Health(
        status=status,
        version=__version__,
        device=runtime.device if runtime else None,
        runtime=runtime.name if runtime else None,
        precision=runtime.precision if runtime else None,
        batch_tiles=runtime.batch_tiles if runtime else None,
        default_model=service.settings.default_model,
        models=[model.summarise(default=model is default) for model in service.registry.models],
        refused_weights=service.registry.refused,
        weights_folder_error=service.registry.folder_error,
        queue=QueueState(
            requests=service.admission.requests,
            max_requests=service.admission.max_requests,
            pixels=service.admission.pixels,
            max_pixels=service.admission.max_pixels,
            waiting_tiles=service.batcher.waiting_tiles,
        ),
        last_reload=service.registry.last_reload,
        pid=os.getpid(),
        workers=_workers(service),
        uptime_s=round(time.monotonic() - service.lifecycle.started_at, 3),
    )
    return JSONResponse(body.model_dump(mode="json"), status_code=200 if status == "ready" else 503)


def _workers(service: Service) -> Workers:
    running = {os.getpid(): service.beat()}
    replaced, last_death = 0, None
    if service.peers is not None:
        roster = service.peers.roster
        running = {pid: beat or Beat("starting", {}) for pid, beat in roster.beats.items()} | running
        replaced, last_death = roster.replaced, roster.last_death
    return Workers(
        expected=service.settings.workers,
        replaced=replaced,
        last_death=last_death,
        running=[WorkerState(pid=pid, status=beat.status, models=beat.models) for pid, beat in sorted(running.items())],
    )
