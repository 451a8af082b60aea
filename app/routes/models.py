"""GET /models, GET /models/{name} and POST /models/{name}/reload."""

from typing import Any

from fastapi import APIRouter, Request

from app.docs import LIST_ANSWERS, MODEL_ANSWERS, RELOAD_ANSWERS
from app.doors import key_of
from app.errors import AdminOnlyError, KeyMissingError, ReloadClosedError
from app.registry import Model
from app.schemas import ModelDetail, ModelList, ModelSummary
from app.service import Service
from model.quality import PROFILE_KEY

router = APIRouter(prefix="/models", tags=["models"])


@router.get("", summary="Models that serve", responses=LIST_ANSWERS)
async def list_models(request: Request) -> ModelList:
    """Name and version of each."""
    service: Service = request.app.state.service
    return ModelList(models=[_summarise(service, model) for model in service.registry.models])


@router.get("/{name}", summary="One model", responses=MODEL_ANSWERS)
async def get_model(request: Request, name: str) -> ModelDetail:
    """Its config and its card, as they stand in its file of weights, and the text that goes with them."""
    service: Service = request.app.state.service
    model = service.registry.get(name)
    summary = _summarise(service, model)
    segmenter = model.segmenter
    return ModelDetail(
        **summary.model_dump(),
        config=segmenter.config,
        card=_without_lists(segmenter.card),
        readme=await service.registry.read_about(model),
        int8=segmenter.twin.twin.report if segmenter.twin else None,
    )


@router.post("/{name}/reload", summary="Load a model's file again", responses=RELOAD_ANSWERS)
async def reload_model(request: Request, name: str) -> ModelSummary:
    """Load, verify and warm up the file aside, then swap it in between two batches; needs an admin's key.

    On failure the old version keeps serving, and the answer says what is wrong with the file. 200 means that every
    worker process serves the new version.
    """
    service: Service = request.app.state.service
    _check_admin(request, service)
    service.lifecycle.check()
    return _summarise(service, await service.reload(name))


def _check_admin(request: Request, service: Service) -> None:
    if not service.keys.has_admin:
        raise ReloadClosedError("no admin key is configured; the operator sets MASKWELL_ADMIN_KEY, or one in the keys")
    key = key_of(request.scope)
    if key is None:
        raise KeyMissingError("send an admin's key: Authorization: Bearer KEY, or X-API-Key: KEY")
    if key.role != "admin":
        raise AdminOnlyError(f"the key {key.name!r} is a user's; this needs an admin's")


def _summarise(service: Service, model: Model) -> ModelSummary:
    return model.summarise(default=model is service.registry.default)


def _without_lists(card: dict[str, Any]) -> dict[str, Any]:
    """The card without the names and digests of single images, which may be patients', but with how many they are."""
    shown = {key: value for key, value in card.items() if key not in ("split", "seen", "seen_by_name", PROFILE_KEY)}
    split = card.get("split")
    if isinstance(split, dict):
        shown["split"] = {part: len(names) for part, names in split.items() if isinstance(names, list)}
    tuned = card.get("tuned")
    if isinstance(tuned, dict) and isinstance(tuned.get("images"), list):
        shown["tuned"] = {**tuned, "images": len(tuned["images"])}
    return shown
