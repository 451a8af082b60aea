"""Seconds a training step takes, on this machine: `python bench/step.py [--width 32] [--rounds 3]`.

Each way runs in a process of its own, and rounds go through all ways in turn, so that other work on the machine hits
them alike; the median of the steps counts. `as it comes` leaves freed memory to the C library.
"""

import argparse
import statistics
import subprocess
import sys
import time

WAYS = (("32-true", "as it comes"), ("32-true", "kept"), ("bf16-mixed", "as it comes"), ("bf16-mixed", "kept"))


def main() -> None:
    """Print seconds a step of four 256 px crops, and the ratio to the first way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--way", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(*time_steps(*options.way, width=options.width, steps=options.steps))
        return
    times: dict[tuple[str, str], list[float]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way in WAYS:
            command = [sys.executable, __file__, "--width", str(options.width), "--steps", str(options.steps)]
            done = subprocess.run([*command, "--way", *way], stdout=subprocess.PIPE, text=True, check=True)
            times[way] += [float(value) for value in done.stdout.split()]
    first = statistics.median(times[WAYS[0]])
    for way, taken in times.items():
        median = statistics.median(taken)
        print(f"{way[0]:10} freed memory {way[1]:12} {median:.3f} s a step, {median / first:.2f} of the first")


def time_steps(precision: str, memory: str, *, width: int, steps: int) -> list[float]:
    """Seconds of each step but the first two, which are slower."""
    import torch

    from model.checkpoint import Architecture
    from training.losses import segmentation_loss
    from training.train import keep_freed_memory

    if memory == "kept":
        keep_freed_memory()
    torch.manual_seed(0)
    outputs = ("cell", "border", "distance")
    network = Architecture(n_channels=3, n_classes=3, width=width, align_corners=False).build()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.RMSprop(network.parameters(), lr=1e-4, momentum=0.9)
    images = torch.rand(4, 3, 256, 256).contiguous(memory_format=torch.channels_last)
    targets = torch.rand(4, 3, 256, 256).round()
    taken = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            logits = network(images)
        loss = segmentation_loss(logits.float(), targets, outputs=outputs, dice_weight=1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        taken.append(time.perf_counter() - start)
    return taken[2:]


if __name__ == "__main__":
    main()
