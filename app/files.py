"""Files that are looked at again and again: what tells that one has changed."""

import errno
import stat
from pathlib import Path

Signature = tuple[int, int, int, int]


def sign(path: Path) -> Signature | None:
    """What changes when a file does; None where there is none.

    Raises:
        OSError: it cannot be looked at, or is no file: a pipe would be waited for, and a device read without end.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no ordinary file")
    # the change time too, for new permissions leave the others as they were
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
