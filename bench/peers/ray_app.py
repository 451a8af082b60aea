"""Ray Serve: a deployment that takes the HTTP request itself."""

import signal

from common import PORT, WORKERS, Model
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(num_replicas=WORKERS, max_ongoing_requests=64)
class Segment:
    """A replica."""

    def __init__(self) -> None:
        self.model = Model()

    async def __call__(self, request: Request) -> Response:
        form = await request.form()
        data = await form["file"].read()  # type: ignore[union-attr]
        return Response(self.model.segment(data), media_type="image/png")


if __name__ == "__main__":
    serve.start(http_options={"host": "127.0.0.1", "port": PORT, "request_timeout_s": 300})
    serve.run(Segment.bind(), route_prefix="/segment")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
