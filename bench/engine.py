"""How much of the processor's arithmetic each engine turns into answers, in turns within one run.

python bench/engine.py [--widths 64 32] [--side 512] [--repeats 5] [--json engine.json] [--plot engine.png] [--write]

The yardstick is the machine's own float32 matrix product (PyTorch's, 2048 x 2048), measured in the same turns. An int8
twin with drawn ranges is made for each width: its answers mean nothing, its arithmetic is that of a real one.

python bench/engine.py --curves [--width 32] times a tile instead, by streams, passes under way and tiles a pass.
"""

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from kit import PLOTS, machine, report

from model.checkpoint import Architecture, Checkpoint, ModelConfig
from model.openvino_runtime import OpenVinoRuntime, build_graph, state_arrays
from model.runtime import Runtime, TorchRuntime, available_cpus
from model.twin import Quantiser, Twin, TwinReport
from model.types import Batch

# of a 512 x 512 image through a U-Net of width 64; goes with the square of the width and with the pixels
GFLOP = 246.8
MATRIX = 2048
CONVOLUTIONS = ("Convolution", "ConvolutionBackpropData")


class PlainTorch:
    """The network in PyTorch as it comes: eager, NCHW."""

    streams = 1

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._network = checkpoint.build()

    @torch.inference_mode()
    def run(self, batch: Batch) -> Batch:
        """Logits of a batch."""
        answer: Batch = self._network(torch.from_numpy(batch)).numpy()
        return answer


def make_checkpoint(width: int, side: int) -> Checkpoint:
    """Random weights; the arithmetic does not depend on their values."""
    torch.manual_seed(0)
    architecture = Architecture(width=width, align_corners=False)
    return Checkpoint(
        architecture.build().state_dict(), ModelConfig(architecture=architecture, tile_px=(side,)), {}, ""
    )


def make_twin(checkpoint: Checkpoint, side: int) -> Twin:
    """Every convolution in int8, what skips and goes up as well: the places where NNCF puts its rounding."""
    graph = build_graph(checkpoint.config.architecture, state_arrays(checkpoint), (1, side, side))
    quantisers, scales = {}, {}
    for operation in graph.get_ordered_ops():
        kind, name = operation.get_type_name(), operation.get_friendly_name()
        if kind in CONVOLUTIONS:
            weight = operation.input_value(1).get_node().get_data()
            axes = (1, 2, 3) if kind == "Convolution" else (0, 2, 3)
            scales[name] = tuple((np.abs(weight).max(axis=axes) / 127).tolist())
        ports = {"Concat": (0, 1), "MaxPool": (0,), "Interpolate": (0,)}.get(kind, (0,) if kind in CONVOLUTIONS else ())
        for port in ports:
            source = operation.input_value(port)
            if source.get_node().get_type_name() in ("Relu", "Parameter", "Interpolate"):
                quantisers.setdefault(source.get_node().get_friendly_name(), []).append((name, port))
    return Twin(
        checkpoint="0" * 64,
        quantisers=tuple(
            Quantiser(inputs=tuple(inputs), levels=256, low=-4.0 if source == "image" else 0.0, high=4.0)
            for source, inputs in quantisers.items()
        ),
        scales=scales,
        biases={},
        probe=(),
        report=TwinReport(
            n_calibration=1, n_images=1, dice_fp32=0, dice_int8=0, agreement=0, kept_float=(), tool="bench"
        ),
    )


def time_passes(runtime: Runtime | PlainTorch, tile: Batch, passes: int, threads: int) -> float:
    """Seconds a tile with so many passes under way at a time."""

    def work(_: int) -> None:
        for _ in range(passes):
            runtime.run(tile)

    started_at = time.perf_counter()
    with ThreadPoolExecutor(threads) as workers:
        list(workers.map(work, range(threads)))  # what fails in one is raised here
    return (time.perf_counter() - started_at) / (passes * threads * tile.shape[0])


def time_matrix_product() -> float:
    """GFLOP/s of the best of three products."""
    left, right = torch.rand(MATRIX, MATRIX), torch.rand(MATRIX, MATRIX)
    best = float("inf")
    for _ in range(3):
        started_at = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - started_at)
    return 2 * MATRIX**3 / best / 1e9


def compare(width: int, side: int, repeats: int) -> dict[str, object]:
    """Seconds and GFLOP/s of each engine, and the peak, medians over turns."""
    checkpoint = make_checkpoint(width, side)
    engines: dict[str, Runtime | PlainTorch] = {
        "PyTorch eager fp32": PlainTorch(checkpoint),
        "PyTorch channels_last fp32": TorchRuntime(checkpoint, device="cpu"),
        "OpenVINO fp32": OpenVinoRuntime(checkpoint),
        "OpenVINO int8": OpenVinoRuntime(checkpoint, twin=make_twin(checkpoint, side), check=False),
    }
    tile = np.random.default_rng(0).random((1, 1, side, side), dtype=np.float32)
    for engine in engines.values():  # compiles, and touches the memory
        time_passes(engine, tile, 1, engine.streams)
    peaks, seconds = [], {name: [] for name in engines}
    for _ in range(repeats):
        peaks.append(time_matrix_product())
        for name, engine in engines.items():
            seconds[name].append(time_passes(engine, tile, 2, engine.streams))
    gflop = GFLOP * (width / 64) ** 2 * (side / 512) ** 2
    peak = statistics.median(peaks)
    rows = []
    for name, taken in seconds.items():
        # ratios within a turn, so that what else the machine does hits both alike
        of_peak = statistics.median(gflop / one / top for one, top in zip(taken, peaks, strict=True))
        median = statistics.median(taken)
        rows.append({"engine": name, "seconds": median, "gflops": gflop / median, "of_peak": of_peak, "all": taken})
    exact, rounded = seconds["OpenVINO fp32"], seconds["OpenVINO int8"]
    gain = statistics.median(slow / fast for slow, fast in zip(exact, rounded, strict=True))
    return {"width": width, "side": side, "peak_gflops": peak, "int8_over_fp32": gain, "rows": rows}


def curves(width: int, sides: tuple[int, ...], rounds: int) -> list[dict[str, object]]:
    """Seconds a tile by precision, side, tiles a pass, streams and passes under way, medians over turns."""
    checkpoint = make_checkpoint(width, max(sides))
    cpus = available_cpus()
    cases: dict[tuple[str, int, int, int, int], Callable[[], float]] = {}
    for precision, tiles, streams in itertools.product(("fp32", "int8"), (1, 2, 4), sorted({1, cpus})):
        for side in sides:
            runtime = OpenVinoRuntime(
                checkpoint,
                batch_tiles=tiles,
                streams=streams,
                twin=make_twin(checkpoint, side) if precision == "int8" else None,
                check=False,
            )
            batch = np.random.default_rng(0).random((tiles, 1, side, side), dtype=np.float32)
            for threads in (1, 2, 3) if tiles == 1 else (streams,):
                passes = max(1, (4 if precision == "int8" else 1) * (512 // side) ** 2 // tiles)
                time_passes(runtime, batch, 1, threads)
                cases[precision, side, tiles, streams, threads] = (
                    lambda runtime=runtime, batch=batch, passes=passes, threads=threads: time_passes(
                        runtime, batch, passes, threads
                    )
                )
    seconds: dict[tuple[str, int, int, int, int], list[float]] = {}
    for _ in range(rounds):
        for case, measure in cases.items():
            seconds.setdefault(case, []).append(measure())
    keys = ("precision", "side", "tiles", "streams", "passes_under_way")
    return [
        dict(zip(keys, case, strict=True)) | {"seconds": statistics.median(taken)} for case, taken in seconds.items()
    ]


def table(run: dict[str, object]) -> list[str]:
    """A comparison as Markdown."""
    lines = ["", f"Width {run['width']}, {run['side']} px; fp32 matrix product: {run['peak_gflops']:.0f} GFLOP/s.", ""]
    lines += ["| engine | s a tile | GFLOP/s | of the matrix product |", "|---|---|---|---|"]
    for row in run["rows"]:
        lines.append(f"| {row['engine']} | {row['seconds']:.3f} | {row['gflops']:.0f} | {row['of_peak']:.2f} |")
    return [*lines, "", f"int8 over fp32: {run['int8_over_fp32']:.2f}."]


def plot(runs: list[dict[str, object]], path: Path) -> None:
    """Bars of GFLOP/s, with the peak as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(runs), figsize=(5.5 * len(runs), 3.2), squeeze=False, layout="constrained")
    for axis, run in zip(axes[0], runs, strict=True):
        rows = run["rows"]
        bars = axis.barh([row["engine"] for row in rows], [row["gflops"] for row in rows], color="#3b6ea5")
        axis.bar_label(bars, fmt="%.0f", padding=3)
        axis.axvline(run["peak_gflops"], color="#b5452c", label=f"fp32 matrix product: {run['peak_gflops']:.0f}")
        axis.set(title=f"width {run['width']}, {run['side']} px", xlabel="GFLOP/s")
        axis.margins(x=0.15)
        axis.invert_yaxis()
        axis.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run the comparison, or the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 32])
    parser.add_argument("--side", type=int, default=512, help="of the tile, in pixels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write everything there too")
    parser.add_argument("--write", action="store_true", help="the comparison, with its plot, into docs/benchmarks.md")
    parser.add_argument("--plot", type=Path, help="draw the bars there, as PNG")
    parser.add_argument("--curves", action="store_true", help="by streams, passes under way and tiles a pass instead")
    parser.add_argument("--width", type=int, default=32, help="of the curves' network")
    options = parser.parse_args()
    if options.write and options.curves:
        parser.error("--write is for the comparison; docs/benchmarks.md has no place for the curves")
    title = (
        f"{machine()} PyTorch {torch.__version__}, OpenVINO {ov.__version__.split('-')[0]}. "
        f"Load average at the start: {os.getloadavg()[0]:.1f}."
    )
    if options.curves:
        found = curves(options.width, (256, 512), options.repeats)
        lines = ["| precision | tile, px | tiles a pass | streams | passes under way | s a tile |", "|---" * 6 + "|"]
        for row in found:
            *case, seconds = row.values()
            lines.append(f"| {' | '.join(map(str, case))} | {seconds:.4f} |")
        report("engine-curves", [title, "", f"Width {options.width}.", "", *lines], write=False)
    else:
        found = [compare(width, options.side, options.repeats) for width in options.widths]
        report("engine", [title, *(line for run in found for line in table(run))], write=options.write)
        for path in ([options.plot] if options.plot else []) + ([PLOTS / "engine.png"] if options.write else []):
            plot(found, path)
    if options.json:
        options.json.write_text(json.dumps({"machine": title, "runs": found}, indent=2))


if __name__ == "__main__":
    main()
