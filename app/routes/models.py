"""GET /models, GET /models/{name} and POST /models/{name}/reload."""

import hmac
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

from app.docs import MODEL_ANSWERS, RELOAD_ANSWERS
from app.errors import KeyMissingError, ReloadClosedError
from app.registry import Model
from app.schemas import ModelDetail, ModelList, ModelSummary
from app.service import Service

router = APIRouter(prefix="/models", tags=["models"])
bearer = HTTPBearer(auto_error=False, description="The admin key, MASKWELL_ADMIN_KEY.")


@router.get("", summary="Models that serve")
async def list_models(request: Request) -> ModelList:
    """Name and version of each."""
    service: Service = request.app.state.service
    return ModelList(models=[_summarise(service, model) for model in service.registry.models])


@router.get("/{name}", summary="One model", responses=MODEL_ANSWERS)
async def get_model(request: Request, name: str) -> ModelDetail:
    """Its config and its card, as they stand in its file of weights."""
    service: Service = request.app.state.service
    model = service.registry.get(name)
    summary = _summarise(service, model)
    segmenter = model.segmenter
    return ModelDetail(
        **summary.model_dump(),
        config=segmenter.config,
        card=_without_lists(segmenter.card),
        int8=segmenter.twin.twin.report if segmenter.twin else None,
    )


@router.post("/{name}/reload", summary="Load a model's file again", responses=RELOAD_ANSWERS)
async def reload_model(
    request: Request, name: str, given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> ModelSummary:
    """Load, verify and warm up the file aside, then swap it in between two batches; needs the admin key.

    On failure the old version keeps serving, and the answer says what is wrong with the file. 200 means that every
    worker process serves the new version.
    """
    service: Service = request.app.state.service
    _check_key(service.settings.admin_key, given.credentials if given else None)
    service.lifecycle.check()
    return _summarise(service, await service.reload(name))


def _check_key(expected: SecretStr | None, given: str | None) -> None:
    if expected is None:
        raise ReloadClosedError("no admin key is configured; the operator sets it by MASKWELL_ADMIN_KEY")
    if given is None:
        raise KeyMissingError("send the admin key: Authorization: Bearer KEY")
    # compared in the same time wherever they first differ
    if not hmac.compare_digest(given.encode(), expected.get_secret_value().encode()):
        raise KeyMissingError("this is not the admin key")


def _summarise(service: Service, model: Model) -> ModelSummary:
    return model.summarise(default=model is service.registry.default)


def _without_lists(card: dict[str, Any]) -> dict[str, Any]:
    """The card without the names and digests of single images, which may be patients', but with how many they are."""
    shown = {key: value for key, value in card.items() if key not in ("split", "seen")}
    split = card.get("split")
    if isinstance(split, dict):
        shown["split"] = {part: len(names) for part, names in split.items() if isinstance(names, list)}
    return shown
