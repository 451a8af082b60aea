"""One process at a time changes a file of weights and its twin."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.errors import RunError


@contextmanager
def publishing(weights: Path) -> Iterator[None]:
    """Nobody else publishes to a file of weights, tunes it or makes its twin, meanwhile; its folder is made.

    Raises:
        RunError: somebody else does.
    """
    weights.parent.mkdir(parents=True, exist_ok=True)
    with (weights.parent / f".{weights.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"another process publishes to {weights}") from error
        yield
