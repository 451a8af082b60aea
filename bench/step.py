"""Seconds a training step takes, on this machine: `python bench/step.py [--width 32] [--data DATA] [--write]`.

As many pixels in each: one picture of 512 x 512 px as the plain loop takes it (NCHW, float32), or four crops of 256 px.
Each way runs in a process of its own, and rounds go through all ways in turn, so that other work on the machine hits
them alike; the median of the steps counts. `kept` does not give freed memory back to the system in between, as
training does on a CPU. With --data it says too what preparing the four samples of a step takes of one core.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from kit import machine, report

# precision and way to what the table calls them; the last is what training does on a CPU with bfloat16, the last but
# one on others
WAYS = {
    ("32-true", "plain"): "float32 | the plain loop: NCHW, batch 1",
    ("32-true", "channels_last"): "float32 | channels_last",
    ("32-true", "crops"): "float32 | channels_last, crops",
    ("32-true", "crops, kept"): "float32 | channels_last, crops, kept",
    ("bf16-mixed", "crops, kept"): "bfloat16 | channels_last, crops, kept",
}


def main() -> None:
    """Print a table of seconds a step, and of how many times as quick as the first way each is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--data", type=Path, help="images with truth, of which samples are prepared")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
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
    medians = {way: statistics.median(taken) for way, taken in times.items()}
    first = next(iter(medians.values()))
    lines = ["| arithmetic | how | s a step | over the plain loop |", "|---|---|---|---|"]
    lines += [f"| {WAYS[way]} | {median:.3f} | {first / median:.2f} |" for way, median in medians.items()]
    title = f"Width {options.width}. {machine()} PyTorch {torch.__version__}."
    if options.data:
        seconds = time_samples(options.data)
        lines += ["", f"Preparing the samples of a step: {seconds:.3f} s of one core."]
    report("step", [title, "", *lines], write=options.write)


def time_samples(data: Path, n_steps: int = 25) -> float:
    """Seconds of one core for the samples of a step, mean over several."""
    from training.config import Recipe
    from training.data import find_pairs
    from training.dataset import CropDataset, PairCache
    from training.train import model_config

    recipe = Recipe()
    pairs = find_pairs(data)
    cache = PairCache(pairs, quiet=True)
    dataset = CropDataset(cache, recipe, model_config(recipe, pairs, cache.largest_side))
    start = time.process_time()
    for position in range(n_steps * recipe.batch_size):
        dataset[0, position]
    return (time.process_time() - start) / n_steps


def time_steps(precision: str, way: str, *, width: int, steps: int) -> list[float]:
    """Seconds of each step but the first, which is slower."""
    from model.checkpoint import Architecture
    from training.losses import segmentation_loss
    from training.train import keep_freed_memory

    if way.endswith("kept"):
        keep_freed_memory()
    torch.manual_seed(0)
    outputs = ("cell", "border", "distance")
    network = Architecture(n_channels=3, n_classes=3, width=width, align_corners=False).build()
    memory_format = torch.contiguous_format if way == "plain" else torch.channels_last
    network.to(memory_format=memory_format)  # type: ignore[call-overload]
    optimizer = torch.optim.RMSprop(network.parameters(), lr=1e-4, momentum=0.9)
    shape = (4, 3, 256, 256) if way.startswith("crops") else (1, 3, 512, 512)
    images = torch.rand(*shape).contiguous(memory_format=memory_format)
    targets = torch.rand(*shape).round()
    taken = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            logits = network(images)
        loss = segmentation_loss(logits.float(), targets, outputs=outputs, dice_weight=1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        taken.append(time.perf_counter() - start)
    return taken[1:]


if __name__ == "__main__":
    main()
