"""Training and publishing in processes that come to harm: `python -m tests.faults.mortal --help`.

The interpreter and PyTorch are loaded once; each process is a fork, taken before anything runs, so that killing a
hundred of them takes seconds. Prints what happened; the exit status is 1 where something was not as it should be.
"""

import argparse
import math
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

import training.train  # noqa: F401  # loaded before the forks
from model.checkpoint import read_checkpoint
from tests.e2e.kit import write_weights
from training.__main__ import main as train_main

RECIPE = [
    "--width", "2", "--crop-px", "128", "--batch-size", "2", "--epochs", "2", "--crops-per-epoch", "4",
    "--patience", "0",
]  # fmt: skip
# More than any file here has; no file may grow beyond some random part of it.
LARGEST_BYTES = 120_000
# The command line's exit status for what it says in one line.
REFUSED = 2


def fit(data: Path, folder: Path) -> int:
    """Train, or go on, into the file in service."""
    out = folder / "weights" / "best_model.pth"
    arguments = ["fit", data, "--out", out, "--run-folder", folder / "run", "--device", "cpu", "--quiet", *RECIPE]
    return train_main([str(argument) for argument in arguments])


def publish(data: Path, folder: Path) -> int:
    """Publish whichever candidate does not serve."""
    out = folder / "weights" / "best_model.pth"
    serving = read_checkpoint(out).version
    candidate = folder / ("b.pth" if serving == read_checkpoint(folder / "a.pth").version else "a.pth")
    arguments = ["publish", candidate, data, "--to", out, "--force", "--device", "cpu", "--quiet"]
    return train_main([str(argument) for argument in arguments])


def fork(work: Callable[[], int], log: Path | int, *, largest_bytes: int | None = None) -> int:
    """Run `work` in a process of its own, which says what it has to say in `log`; its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        torch.set_num_threads(1)
        out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644) if isinstance(log, Path) else log
        os.dup2(out, 1)
        os.dup2(out, 2)
        if largest_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_bytes, largest_bytes))
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run_on_a_full_disk(work: Callable[[], int], largest_bytes: int) -> tuple[int, str]:
    """Exit status, and what it said, through a pipe, for a file would be full as well."""
    ours, theirs = os.pipe()
    pid = fork(work, theirs, largest_bytes=largest_bytes)
    os.close(theirs)
    with os.fdopen(ours) as stream:
        said = stream.read()
    return wait(pid), said


def wait(pid: int) -> int:
    """The exit status; minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_until(pid: int, deadline: float) -> int | None:
    """The exit status, if it ends before that time of time.monotonic."""
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


class Scene:
    """A folder with weights in service and candidates, and what may not happen to them."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data, self.folder = data, folder
        self.weights = folder / "weights"
        self.log = folder / "log"
        for seed, path in enumerate((self.weights / "best_model.pth", folder / "a.pth", folder / "b.pth")):
            write_weights(path, seed=seed, tile_px=(128,))

    def check(self) -> str:
        """The version in service; raises where it does not load."""
        return read_checkpoint(self.weights / "best_model.pth").version

    def kill_often(self, work: Callable[[Path, Path], int], count: int, seed: int, within_s: float) -> None:
        """Kill a process at a random moment, again and again; each goes on from what the last one left."""
        generator = random.Random(seed)
        started_at = time.monotonic()
        self.expect(wait(fork(lambda: work(self.data, self.folder), self.log)), 0)
        longest_s = time.monotonic() - started_at  # that one takes, as far as is known
        killed = finished = 0
        versions = {self.check()}
        while killed < count and (time.monotonic() - started_at < within_s or not killed):
            began_at = time.monotonic()
            pid = fork(lambda: work(self.data, self.folder), self.log)
            status = wait_until(pid, began_at + generator.uniform(0, longest_s))
            if status is None:
                os.kill(pid, signal.SIGKILL)
                status = wait(pid)
            if status == -signal.SIGKILL:
                killed += 1
                longest_s *= 1.02  # or the last moments would never be met with
            else:
                self.expect(status, 0)
                finished += 1
                longest_s = time.monotonic() - began_at
            versions.add(self.check())
        self.expect(wait(fork(lambda: work(self.data, self.folder), self.log)), 0)  # and one in peace
        self.check()
        print(
            f"{work.__name__}: {killed} killed, {finished} finished between, in {time.monotonic() - started_at:.0f} s; "
            f"{len(versions)} versions served"
        )

    def fill_disk(self, work: Callable[[Path, Path], int], count: int, seed: int) -> None:
        """No file may grow beyond some bytes: it is said in a line, and nothing is left lying about."""
        generator = random.Random(seed)
        refused = 0
        for _ in range(count):
            limit = int(2 ** generator.uniform(8, math.log2(LARGEST_BYTES)))
            before = self.check()
            status, said = run_on_a_full_disk(lambda: work(self.data, self.folder), limit)
            if status == REFUSED:
                refused += 1
                if self.check() != before:
                    raise SystemExit("it was refused, and the weights in service have changed")
                if said.splitlines()[-1][:7] != "error: ":
                    raise SystemExit(f"a full disk is no surprise:\n{said}")
            elif status != 0:
                raise SystemExit(f"status {status} with files of {limit} bytes:\n{said}")
            left = [path.name for path in self.folder.rglob("*.part")]
            if left:
                raise SystemExit(f"left lying about: {left}")
        if not refused:
            raise SystemExit("no disk was full")
        self.expect(wait(fork(lambda: work(self.data, self.folder), self.log)), 0)
        self.check()
        print(f"{count} {work.__name__} on a full disk: {refused} refused, the last one said {said.splitlines()[-1]!r}")

    def race(self, work: Callable[[Path, Path], int], count: int) -> None:
        """Two at once, again and again: both end in order, and one at least gets through."""
        refused = 0
        for _ in range(count):
            pids = [fork(lambda: work(self.data, self.folder), self.log) for _ in range(2)]
            statuses = sorted(wait(pid) for pid in pids)
            if statuses[0] != 0 or statuses[1] not in (0, REFUSED):
                raise SystemExit(f"statuses {statuses}:\n{self.log.read_text()[-3000:]}")
            refused += statuses[1] == REFUSED
            self.check()
            shutil.rmtree(self.folder / "run", ignore_errors=True)
        said = self.log.read_text()
        if "Traceback" in said or said.count("another process") != refused:
            raise SystemExit(said[-3000:])
        print(f"{count} times two {work.__name__} at once: {refused} refused one of them; the weights always load")

    def expect(self, status: int, wanted: int) -> None:
        """An exit status."""
        if status != wanted:
            raise SystemExit(f"status {status}, expected {wanted}:\n{self.log.read_text()[-3000:]}")


def main() -> None:
    """Play one scene."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.mortal", description=__doc__)
    parser.add_argument("scene", choices=("kill", "full", "race"))
    parser.add_argument("work", choices=("fit", "publish"))
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1, help="kills, full disks or races (1)")
    parser.add_argument("--within-s", type=float, default=300.0, help="no more kills after so long (300)")
    options = parser.parse_args()
    work = {"fit": fit, "publish": publish}[options.work]
    scene = Scene(options.data, options.folder)
    if options.scene == "kill":
        scene.kill_often(work, options.count, seed=options.count, within_s=options.within_s)
    elif options.scene == "full":
        scene.fill_disk(work, options.count, seed=options.count)
    else:
        scene.race(work, options.count)


if __name__ == "__main__":
    main()
