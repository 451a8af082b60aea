"""Test a bioimage.io package by bioimageio.core, and run it: PACKAGE KIND_OF_WEIGHTS IMAGE.npy PROBABILITY.npy.

bioimageio.core 0.11 asks for bioimageio.spec 0.5.12, which hands pydantic an argument that pydantic 2.14 refuses;
0.5.14 no longer does. Here 0.5.12 is read with that mended, so that the tests run beside the pydantic that serves.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import numpy as np

WRONG = "info,  # pyright: ignore[reportArgumentType]  # taken from pydantic docs"


class Mended(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        code: Any = self.source_to_code(Path(self.path).read_text().replace(WRONG, "").encode(), self.path)
        assert isinstance(code, CodeType)
        return code


class Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname.startswith("bioimageio.spec") else None
        if spec is not None and spec.origin is not None and WRONG in Path(spec.origin).read_text():
            spec.loader = Mended(fullname, spec.origin)
        return spec


def main() -> None:
    sys.meta_path.insert(0, Finder())
    from bioimageio.core import create_prediction_pipeline, load_description, predict, test_model
    from bioimageio.core.common import MemberId
    from bioimageio.spec import InvalidDescr

    package, image, probability = (Path(sys.argv[number]) for number in (1, 3, 4))
    kind: Any = sys.argv[2]
    summary = test_model(package, weight_format=kind, devices=["cpu"])
    if summary.status != "passed":
        sys.exit(summary.format())
    model = load_description(package)
    if isinstance(model, InvalidDescr):
        sys.exit(model.validation_summary.format())
    pipeline = create_prediction_pipeline(model, weight_format=kind, devices=["cpu"])  # type: ignore[arg-type]  # a model
    sample = predict(model=pipeline, inputs={"image": np.load(image)})
    np.save(probability, np.asarray(sample.members[MemberId("probability")].data))


if __name__ == "__main__":
    main()
