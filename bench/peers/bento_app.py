"""BentoML: a service with one API, started by its command line."""

from pathlib import Path
from typing import Annotated

import bentoml
from bentoml.validators import ContentType
from common import WORKERS, Model


@bentoml.service(workers=WORKERS, traffic={"timeout": 300})
class Segment:
    """A worker."""

    def __init__(self) -> None:
        self.model = Model()

    @bentoml.api
    def segment(self, file: Annotated[Path, ContentType("image/png")]) -> Annotated[bytes, ContentType("image/png")]:
        return self.model.segment(file.read_bytes())
