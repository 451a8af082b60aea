"""GET /metrics: for Prometheus."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.docs import METRICS_ANSWERS
from app.service import Service

router = APIRouter(tags=["health"])


@router.get("/metrics", summary="Metrics for Prometheus", response_class=Response, responses=METRICS_ANSWERS)
async def metrics(request: Request) -> Response:
    """Prometheus text, or OpenMetrics where it is asked for. Scrapes are not counted themselves."""
    service: Service = request.app.state.service
    text, media_type = service.metrics.expose(service, request.headers.get("accept", ""))
    return Response(text, headers={"Content-Type": media_type})
