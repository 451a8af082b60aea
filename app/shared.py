"""The folder whose files all worker processes share.

It goes with its supervisor; one whose processes were all killed is removed by the next that starts. That a folder is in
use is said by a lock (flock) on it, which the kernel lets go with the last process that has it, and which also keeps
systemd-tmpfiles from cleaning it out of /tmp after ten days.
"""

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

logger = logging.getLogger("app.shared")

PREFIX = "maskwell-workers-"


@contextmanager
def make_shared_folder() -> Iterator[Path]:
    """An empty folder below the system's folder for temporary files (TMPDIR), removed at the end.

    Raises:
        OSError: it cannot be made.
    """
    _remove_leftovers(Path(tempfile.gettempdir()))
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        with suppress(FileNotFoundError):  # another that starts took it for a leftover before it was locked
            lock = hold(folder)
            break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def hold(folder: Path) -> int:
    """Say that a folder is in use by this process, for as long as the file descriptor that is returned is open.

    Raises:
        OSError: it cannot be opened or locked; FileNotFoundError where it is not there any more.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if not os.path.samestat(os.fstat(descriptor), folder.stat()):
            raise FileNotFoundError(f"{folder} was removed and made again")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _remove_leftovers(parent: Path) -> None:
    """Remove such folders of this user as no process holds. What cannot be looked at or removed stays."""
    with suppress(OSError):
        for path in sorted(parent.glob(f"{PREFIX}*")):
            with suppress(OSError):
                _remove_leftover(path)


def _remove_leftover(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_uid != os.getuid():
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError where it is in use
        shutil.rmtree(path)
        logger.info("removed %s, which workers that were killed had left", path)
    finally:
        os.close(descriptor)
