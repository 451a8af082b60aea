"""Fixtures for all tests: tiny weights, and the one server that the end-to-end tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.kit import ServerProcess, write_weights


@pytest.fixture(scope="session", autouse=True)
def _no_cache() -> Iterator[None]:
    """Tests leave nothing in the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKWELL_CACHE_DIR", "off")
        yield


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `best_model.pth`, for reading only."""
    folder = tmp_path_factory.mktemp("weights")
    write_weights(folder / "best_model.pth", tile_px=(128,))
    return folder


@pytest.fixture(scope="session")
def shared_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the shared server serves: two models of the usual tile sizes."""
    folder = tmp_path_factory.mktemp("served")
    write_weights(folder / "best_model.pth", seed=0)
    write_weights(folder / "other.pth", seed=1, min_area_px=20)
    return folder


@pytest.fixture(scope="session")
def server(shared_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A running service with small limits."""
    settings = {"max_pixels": 4096 * 4096, "max_upload_bytes": 24 * 1024**2, "max_files": 20, "batch_tiles": 4}
    with ServerProcess(shared_weights, tmp_path_factory.mktemp("log") / "server.log", settings) as process:
        yield process
