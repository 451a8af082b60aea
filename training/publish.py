"""Put a candidate into service, unless it is worse than the weights there on the same images."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from model.checkpoint import read_checkpoint, write_atomically
from model.errors import WeightsError
from model.runtime import make_runtime
from model.segmenter import Segmenter
from model.twin import TwinReport, twin_path, write_twin
from training.data import Pair
from training.dataset import PairCache
from training.errors import DataError, RefusedError, RunError
from training.evaluate import Scores, evaluate
from training.lock import publishing
from training.quantise import describe_twin, make_twin, split_for_twin
from training.seen import chosen_on, unseen_pairs


@dataclass(frozen=True)
class PublishReport:
    """What was published.

    Attributes:
        to: the file that now holds the candidate.
        version: its SHA-256.
        candidate: scores of the candidate.
        current: of the weights that it replaced; None if there were none that could be read.
        n_images: that both were scored on.
        n_left_out: that were not used, for one of the two was trained on them.
        twin: how well its int8 twin answers; None if it has none.
        twin_error: why it has none.
        n_chosen: of n_images, those that chose the candidate's epoch or threshold, which flatters it.
    """

    to: Path
    version: str
    candidate: Scores
    current: Scores | None
    n_images: int
    n_left_out: int
    twin: TwinReport | None = None
    twin_error: str | None = None
    n_chosen: int = 0

    def __str__(self) -> str:
        before = "nothing before it" if self.current is None else f"before it {self.current}"
        left_out = f"; {self.n_left_out} images that one of them was trained on were left out"
        chosen = f"; {self.n_chosen} of the {self.n_images} chose its epoch or threshold, which flatters it"
        return (
            f"published {self.to} as version {self.version[:12]}: {self.candidate} on "
            f"{self.n_images} images, {before}"
            + (left_out if self.n_left_out else "")
            + (chosen if self.n_chosen else "")
            + (f"\n{describe_twin(self.twin)}" if self.twin else "")
            + (f"\nno int8 twin, so a CPU runs it in float32: {self.twin_error}" if self.twin_error else "")
        )


def publish(
    candidate: Path,
    pairs: Sequence[Pair],
    *,
    to: Path,
    force: bool = False,
    tolerance: float = 0.0,
    device: str = "auto",
    int8: bool = True,
    quiet: bool = False,
) -> PublishReport:
    """Replace the weights in service by a candidate, if it is not worse, and their int8 twin by the candidate's.

    Worse is what training calls so (Scores.overall): the Dice of the mask and, where the truth has cells, in equal
    parts their mean AP, for the mask hardly shows whether touching cells are parted.

    Those that chose its epoch or threshold are not left out, for there are often no others; the report says how many.

    A twin that is not good enough (training.quantise) is left out, and the candidate published without one.

    Images that either of them was trained on are left out, for it would be judged on what it has seen; where none is
    left, those of the candidate alone. A card tells them by their pixels, or by their names where an older one has no
    more than these.

    Args:
        candidate: a checkpoint.
        pairs: images with truth.
        to: the file in service; a reader sees the old one or the new one.
        force: publish a worse candidate too. One that cannot be read, or whose network answers with NaN or one and the
            same value everywhere, is never published.
        tolerance: how much of that score the candidate may be worse by.
        int8: make a twin at all.
        device, quiet: as everywhere.

    Raises:
        RefusedError: the candidate is worse.
        WeightsError: the candidate cannot be used.
        DataError: no image is left to compare on.
        RunError: another process publishes to the same file.
    """
    if not 0 <= tolerance <= 1:  # NaN too would let anything pass
        raise DataError(f"tolerance {tolerance}; allowed is 0 to 1")
    checkpoint = read_checkpoint(candidate)
    segmenter = Segmenter(checkpoint, make_runtime(checkpoint, device=device))
    segmenter.warm_up()
    if to.is_dir():
        raise RunError(f"{to} is a folder; --to names a file")
    unseen = unseen_pairs(pairs, checkpoint.card)
    if not unseen:
        raise DataError(f"{candidate} was trained on all {len(pairs)} of these images; name others to compare on")
    with publishing(to):
        current, old = None, None
        if to.exists():
            with suppress(WeightsError):  # what cannot be read cannot serve either, so anything is better
                current = read_checkpoint(to)
        fresh = unseen if current is None else unseen_pairs(unseen, current.card)
        cache = PairCache(fresh or unseen, quiet=quiet)
        new = evaluate(segmenter, cache, quiet=quiet)
        if current is not None:
            with suppress(WeightsError):
                old = evaluate(Segmenter(current, make_runtime(current, device=device)), cache, quiet=quiet)
        if old is not None and new.overall < old.overall - tolerance and not force:
            raise RefusedError(
                f"{candidate}: {new} on {len(cache)} images, the weights in service: {old}; "
                "--force publishes it all the same"
            )
        twin, twin_error = None, None
        if int8:
            try:
                twin = make_twin(checkpoint, split_for_twin(pairs, unseen), quiet=quiet)
            except RefusedError as error:
                twin_error = str(error)
        data = candidate.read_bytes()
        if hashlib.sha256(data).hexdigest() != checkpoint.version:
            raise RunError(f"{candidate} was changed while it was being compared")
        # The twin first: a service that looks between the two goes on with the old pair, which it has in memory.
        if twin is not None:
            write_twin(to, twin)
        write_atomically(to, data)
        if twin is None:
            twin_path(to).unlink(missing_ok=True)
    report = twin.report if twin else None
    n_chosen = len(chosen_on(checkpoint.card) & {pair.name for pair in cache.pairs})
    n_left_out = len(pairs) - len(cache)
    return PublishReport(to, checkpoint.version, new, old, len(cache), n_left_out, report, twin_error, n_chosen)
