"""Mosec: a worker that takes the body of the request, which is the image itself, as its examples do."""

from typing import Any

from common import WORKERS, Model
from mosec import Server, Worker


class Segment(Worker):
    """A worker."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> bytes:
        return self.model.segment(data)

    def serialize(self, data: Any) -> bytes:
        return bytes(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Segment, num=WORKERS, timeout=300)
    server.run()
