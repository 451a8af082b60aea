"""Compiled networks kept on disk from one start to the next; where anything is wrong, they are compiled anew."""

import hashlib
import logging
import os
import stat
from contextlib import suppress
from pathlib import Path

from model.checkpoint import write_atomically

logger = logging.getLogger("model.cache")

SUFFIX = ".blob"
DIGEST_BYTES = 32
# More than a few models have shapes; what has not been used for longest goes.
MAX_FILES = 32


class CompiledCache:
    """A folder of compiled networks, each under a key that says all that it depends on.

    What is read from it runs as code in effect, so a folder that somebody else owns or may write to is not used. A file
    holds its own SHA-256, so one that is cut short or damaged counts as missing.

    Args:
        folder: made if it is not there, for this user alone; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = _usable(folder) if folder else None

    def load(self, key: str) -> bytes | None:
        """What is kept under a key; None where nothing whole is."""
        if self._folder is None:
            return None
        path = self._folder / f"{key}{SUFFIX}"
        try:
            data = path.read_bytes()
        except OSError:
            return None
        with suppress(OSError):  # a folder that may only be read still serves
            path.touch()  # when it was last used
        digest, blob = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
        return blob if hashlib.sha256(blob).digest() == digest else None

    def store(self, key: str, blob: bytes) -> None:
        """Keep it under a key, in one step; a disk that is full or read-only keeps nothing."""
        if self._folder is None:
            return
        try:
            write_atomically(self._folder / f"{key}{SUFFIX}", hashlib.sha256(blob).digest() + blob)
            kept = sorted(self._folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime, reverse=True)
            for path in kept[MAX_FILES:]:
                path.unlink(missing_ok=True)
        except OSError as error:
            logger.info("compiled networks are not kept: %s", error)
            self._folder = None


def default_folder() -> Path:
    """`maskwell` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maskwell"


def _usable(folder: Path) -> Path | None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        logger.info("compiled networks are not kept: %s", error)
        return None
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        logger.warning("compiled networks are not kept: %s may be written to by others", folder)
        return None
    return folder
