"""The answer to a batch: a zip with one result a file, under names that are safe to unpack."""

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath

from app.schemas import FileProblem
from model.outputs import write_zip

MAX_STEM_BYTES = 150  # with number, kind and suffix below the 255 that file systems allow
# What Windows won't have in a name, apart from control characters.
FORBIDDEN = set('<>:"/\\|?*')
DEVICES = {"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)}


def to_safe_stem(name: str) -> str:
    """What of an uploaded file's name may stand in a zip: its last part, without suffix.

    Args:
        name: as the client sent it; may hold paths of any system, control characters, nothing at all.

    Returns:
        A name without separators that any system can unpack; `image` if nothing is left.
    """
    last = PurePosixPath(PureWindowsPath(name).name).name
    stem = PurePosixPath(unicodedata.normalize("NFC", last)).stem if last else ""
    kept = "".join("_" if char in FORBIDDEN or not char.isprintable() else char for char in stem)
    kept = kept.encode("utf-8", "ignore")[:MAX_STEM_BYTES].decode("utf-8", "ignore").strip(" .")
    if not kept:
        return "image"
    return f"_{kept}" if kept.split(".")[0].casefold() in DEVICES else kept


def to_unique_stems(names: Iterable[str]) -> list[str]:
    """A safe stem for each name, no two alike, not even where capitals do not count: `a`, `a-2`, `a-3`."""
    taken: set[str] = set()
    last: dict[str, int] = {}  # number that a stem has been given; so many alike names take no longer than others
    stems = []
    for name in names:
        stem = to_safe_stem(name)
        candidate, number = stem, last.get(stem, 1)
        while unicodedata.normalize("NFC", candidate.casefold()) in taken:
            number += 1
            candidate = f"{stem}-{number}"
        last[stem] = number
        taken.add(unicodedata.normalize("NFC", candidate.casefold()))
        stems.append(candidate)
    return stems


@dataclass(frozen=True)
class Entry:
    """A result in the zip.

    Attributes:
        name: safe, and unlike all others.
        body: the file.
        provenance: what a single answer says in its headers, by their names; becomes the entry's comment.
    """

    name: str
    body: bytes
    provenance: Mapping[str, str]


def write_archive(
    results: Sequence[Entry], problems: Sequence[FileProblem], provenance: Mapping[str, str] | None = None
) -> bytes:
    """A zip of results; `errors.json` where there were problems; the provenance of all as its comment."""
    files = {entry.name: entry.body for entry in results}
    comments = {entry.name: entry.provenance for entry in results}
    if problems:
        listed = [problem.model_dump(mode="json", exclude_none=True) for problem in problems]
        files["errors.json"] = json.dumps(listed, indent=2, ensure_ascii=False).encode()
    return write_zip(files, provenance, comments)
