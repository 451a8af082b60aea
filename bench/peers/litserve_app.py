"""LitServe, as its documentation serves an uploaded image."""

from typing import Any

import litserve
from common import PORT, WORKERS, Model
from fastapi import Request
from fastapi.responses import Response


class SegmentAPI(litserve.LitAPI):
    """Setup once a worker, then decode, predict and encode."""

    def setup(self, device: str) -> None:
        self.model = Model()

    def decode_request(self, request: Request) -> bytes:
        form: Any = request  # LitServe hands over the form
        data: bytes = form["file"].file.read()
        return data

    def predict(self, data: bytes) -> bytes:
        return self.model.segment(data)

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="image/png")


if __name__ == "__main__":
    api = SegmentAPI(api_path="/segment")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS, timeout=300)
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False, log_level="warning")
