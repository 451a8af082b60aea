"""Make the int8 twin of a checkpoint: choose the ranges on training images by NNCF, and see what rounding costs.

NNCF works on OpenVINO's graph of the network; what it adds is read out of its result and stored in model.twin's format,
from which the service builds the same network again.
"""

import io
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from tqdm import tqdm

from model.checkpoint import Checkpoint, ModelConfig, read_checkpoint
from model.errors import WeightsError
from model.metrics import Counts, dice, score_cells
from model.openvino_runtime import OpenVinoRuntime, build_graph, probe, quantise_graph, state_arrays
from model.preprocess import preprocess
from model.segmenter import Segmentation, Segmenter
from model.tiling import Stitcher, plan_tiles
from model.twin import Quantiser, Twin, TwinReport, read_twin, twin_path, write_twin
from model.types import Batch, Labels
from training.data import Pair
from training.errors import DataError, RefusedError
from training.evaluate import AP_THRESHOLDS, pooled_mean_ap
from training.lock import publishing
from training.seen import unseen_pairs

# What rounding may cost.
MAX_DICE_DROP = 0.002
MAX_AP_DROP = 0.002
MIN_AGREEMENT = 0.995
# Tiles that ranges are taken from, and the fewest images that they may come from while others are left to check on.
CALIBRATION_TILES = 96
MIN_CALIBRATION_IMAGES = 4
# Weights that lie in the middle between two steps may be rounded to either.
REBUILT_TOLERANCE = 0.05
# Convolutions that stay in floating point, tried in turn until the checks pass, the quickest first. The first
# convolution sees the image's own grey levels and the last makes the logits; those beside them work at full resolution,
# where rounding shows as it is. With the last in floating point what it reads, at full resolution, is written so too.
SENSITIVE: tuple[tuple[str, ...], ...] = (
    (),
    ("inc.double_conv.0",),
    ("inc.double_conv.0", "outc.conv"),
    ("inc.double_conv.0", "inc.double_conv.3", "up4.conv.double_conv.0", "up4.conv.double_conv.3", "outc.conv"),
)


@dataclass(frozen=True)
class Split:
    """Images that ranges are taken from, and those that the twin is checked on."""

    calibration: list[Pair]
    check: list[Pair]


def describe_twin(report: TwinReport) -> str:
    """In a line."""
    kept = f"; {len(report.kept_float)} convolutions stay in float32" if report.kept_float else ""
    cells = ""
    if report.ap_fp32 is not None and report.ap_int8 is not None:
        cells = f"mean AP {report.ap_int8:.4f} where it has {report.ap_fp32:.4f}, "
    return (
        f"int8 twin: Dice {report.dice_int8:.4f} where float32 has {report.dice_fp32:.4f}, {cells}the same in "
        f"{report.agreement:.4f} of pixels, on {report.n_images} images{kept}"
    )


def split_for_twin(pairs: Sequence[Pair], unseen: list[Pair]) -> Split:
    """Calibrate on what the network was trained on, and check on the rest.

    Where there is not enough of the one or the other, every second image that it was not trained on calibrates; a
    single image does both.

    Args:
        pairs: all of them.
        unseen: those of them that it was not trained on.

    Raises:
        DataError: all images were trained on, or there is none.
    """
    if not unseen:
        raise DataError(
            f"the weights were trained on all {len(pairs)} of these images; others are needed for the check"
        )
    names = {id(pair) for pair in unseen}
    seen = [pair for pair in pairs if id(pair) not in names]
    if len(seen) >= MIN_CALIBRATION_IMAGES:
        return Split(seen, unseen)
    return Split(unseen[::2], unseen[1::2] or unseen)


def quantise(weights: Path, pairs: Sequence[Pair], *, quiet: bool = False) -> TwinReport:
    """Make the int8 twin of a file of weights, check it, and write it beside the file.

    Args:
        weights: a checkpoint; it stays as it is.
        pairs: images with truth, best with some that the weights were trained on and some that they were not.
        quiet: no progress bar.

    Raises:
        RefusedError: no twin is good enough; one that was there for other weights is gone then.
        WeightsError: the weights cannot be used.
        DataError: there are no images to check on.
        RunError: another process publishes to the same file.
    """
    read_checkpoint(weights)  # what is wrong with it is said before anything is written
    with publishing(weights):
        checkpoint = read_checkpoint(weights)
        try:
            twin = make_twin(checkpoint, split_for_twin(pairs, unseen_pairs(pairs, checkpoint.card)), quiet=quiet)
        except RefusedError:
            try:
                read_twin(weights, checkpoint.version)
            except WeightsError:  # damaged, or for other weights
                twin_path(weights).unlink(missing_ok=True)
            raise
        write_twin(weights, twin)
    return twin.report


def make_twin(checkpoint: Checkpoint, split: Split, *, quiet: bool = False) -> Twin:
    """A twin that passes the checks, with as few convolutions left in floating point as that takes.

    Raises:
        RefusedError: none does; says how far off the best one is.
    """
    tiles = _draw_tiles(checkpoint.config, split.calibration, quiet=quiet)
    reference = _Reference(checkpoint, split.check, quiet=quiet)
    reports = []
    for kept_float in SENSITIVE:
        twin = _calibrate(checkpoint, tiles, kept_float, quiet=quiet)
        report = reference.compare(twin, quiet=quiet)
        twin = twin.model_copy(update={"report": report})
        if _is_good(report):
            return twin
        reports.append(report)
    best = max(reports, key=lambda report: report.agreement)
    raise RefusedError(
        f"no int8 twin is good enough: the best has Dice {best.dice_int8:.4f} where float32 has {best.dice_fp32:.4f}, "
        f"and agrees with it in {best.agreement:.4f} of pixels; allowed are {MAX_DICE_DROP} less and {MIN_AGREEMENT}, "
        f"and where the truth has cells {MAX_AP_DROP} less of their mean AP"
    )


def _is_good(report: TwinReport) -> bool:
    """Masks hardly differ, and touching cells are parted as well as before, which hangs on the finer maps."""
    if report.ap_fp32 is not None and report.ap_int8 is not None and report.ap_fp32 - report.ap_int8 > MAX_AP_DROP:
        return False
    return report.dice_fp32 - report.dice_int8 <= MAX_DICE_DROP and report.agreement >= MIN_AGREEMENT


class _Reference:
    """Masks of the float32 network on some images, to compare twins with."""

    def __init__(self, checkpoint: Checkpoint, pairs: Sequence[Pair], *, quiet: bool) -> None:
        segmenter = Segmenter(checkpoint, OpenVinoRuntime(checkpoint))
        self._checkpoint = checkpoint
        self._pairs = pairs
        self._masks = []
        self._dice = []
        self._cells: list[dict[float, Counts]] = []
        for pair in tqdm(pairs, desc="float32", unit="image", disable=quiet or None, leave=False):
            image, labels = pair.read()
            answer = segmenter.segment(image)
            self._cells += _count_cells(pair, labels, answer)
            mask = answer.mask()
            self._masks.append(np.packbits(mask))
            self._dice.append(dice(labels > 0, mask))

    def compare(self, twin: Twin, *, quiet: bool) -> TwinReport:
        segmenter = Segmenter(self._checkpoint, OpenVinoRuntime(self._checkpoint, twin=twin))
        scores, same, pixels = [], 0, 0
        cells: list[dict[float, Counts]] = []
        bar = tqdm(self._pairs, desc="int8", unit="image", disable=quiet or None, leave=False)
        for pair, packed in zip(bar, self._masks, strict=True):
            image, labels = pair.read()
            answer = segmenter.segment(image)
            cells += _count_cells(pair, labels, answer)
            mask = answer.mask()
            expected = np.unpackbits(packed, count=mask.size).reshape(mask.shape)
            scores.append(dice(labels > 0, mask))
            same += int((mask == expected).sum())
            pixels += mask.size
        return twin.report.model_copy(
            update={
                "n_images": len(scores),
                "dice_fp32": float(np.mean(self._dice)),
                "dice_int8": float(np.mean(scores)),
                "agreement": same / pixels,
                "ap_fp32": pooled_mean_ap(self._cells) if self._cells else None,
                "ap_int8": pooled_mean_ap(cells) if cells else None,
            }
        )


def _count_cells(pair: Pair, labels: Labels, answer: Segmentation) -> list[dict[float, Counts]]:
    """Cells found and missed; nothing where the truth has none of their own."""
    return [] if pair.kind == "mask" else [score_cells(labels, answer.labels(), AP_THRESHOLDS).counts]


def _draw_tiles(config: ModelConfig, pairs: Sequence[Pair], *, quiet: bool) -> list[Batch]:
    """(1, C, S, S) each: as many of every image, CALIBRATION_TILES in all; drawn by a fixed seed."""
    generator = np.random.default_rng(0)
    order = generator.permutation(len(pairs))[:CALIBRATION_TILES]
    each = -(-CALIBRATION_TILES // len(order))
    tiles: list[Batch] = []
    for index in tqdm(order, desc="calibration", unit="image", disable=quiet or None, leave=False):
        planes = preprocess(
            pairs[index].read()[0], n_channels=config.architecture.n_channels, normalisation=config.normalisation
        )
        grid = plan_tiles(planes.shape[1], planes.shape[2], (min(config.tile_px),))
        stitcher = Stitcher(planes, grid, config.architecture.n_classes)
        chosen = generator.permutation(len(grid))[:each]
        tiles += [np.ascontiguousarray(stitcher.tile(int(place)))[None] for place in chosen]
    return tiles[:CALIBRATION_TILES]


def _calibrate(checkpoint: Checkpoint, tiles: Sequence[Batch], kept_float: Sequence[str], *, quiet: bool) -> Twin:
    """Let NNCF choose the ranges, and read them out of its graph."""
    # It would report home on each call, which training never does. Read once, when it is imported.
    os.environ.setdefault("NNCF_CI", "1")
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    architecture, state = checkpoint.config.architecture, state_arrays(checkpoint)
    shape = 1, tiles[0].shape[2], tiles[0].shape[3]
    graph = build_graph(architecture, state, shape)
    with redirect_stdout(io.StringIO() if quiet else sys.stderr):  # its progress bars
        quantised = nncf.quantize(
            graph,
            nncf.Dataset(tiles),
            subset_size=len(tiles),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            fast_bias_correction=False,  # slower, and keeps more of the AP (decisions/0011)
            ignored_scope=nncf.IgnoredScope(names=list(kept_float)) if kept_float else None,
        )
    report = TwinReport(
        n_calibration=len(tiles),
        n_images=1,
        dice_fp32=0,
        dice_int8=0,
        agreement=0,
        kept_float=tuple(kept_float),
        tool=f"nncf {version('nncf')}, openvino {version('openvino')}",
    )
    twin = Twin(
        checkpoint=checkpoint.version,
        quantisers=_read_quantisers(quantised),
        scales=_read_scales(quantised),
        biases=_read_biases(graph, quantised),
        probe=(),
        report=report,
    )
    rebuilt = build_graph(architecture, state, shape)
    quantise_graph(rebuilt, twin)
    expected, found = _answer(quantised, tiles[0]), _answer(rebuilt, tiles[0])
    if float(np.abs(found - expected).mean()) > REBUILT_TOLERANCE * float(expected.std()):
        raise RuntimeError("the network built from the twin gives other values than NNCF's")
    logits = probe(OpenVinoRuntime(checkpoint, twin=twin, check=False), checkpoint.config)
    return twin.model_copy(update={"probe": _decimals(logits)})


def _read_quantisers(graph: ov.Model) -> tuple[Quantiser, ...]:
    quantisers = []
    for operation in graph.get_ordered_ops():
        if operation.get_type_name() != "FakeQuantize":
            continue
        low, high, low_out, high_out = (operation.input_value(port).get_node().get_data() for port in range(1, 5))
        if low != low_out or high != high_out:  # an error too where there are several
            raise RuntimeError(f"{operation.get_friendly_name()} maps its range onto another one")
        takers = sorted(
            (taker.get_node().get_friendly_name(), taker.get_index())
            for taker in operation.output(0).get_target_inputs()
        )
        quantisers.append(
            Quantiser(
                inputs=tuple(takers),
                levels=operation.get_attributes()["levels"],
                low=_decimals(low)[0],
                high=_decimals(high)[0],
            )
        )
    return tuple(quantisers)


def _read_scales(graph: ov.Model) -> dict[str, tuple[float, ...]]:
    """Steps of the weights that NNCF has turned into int8: a constant, converted, times a scale for each channel."""
    scales = {}
    for operation in graph.get_ordered_ops():
        if operation.get_type_name() not in ("Convolution", "ConvolutionBackpropData"):
            continue
        product = operation.input_value(1).get_node()
        if product.get_type_name() == "Multiply":
            scales[operation.get_friendly_name()] = _decimals(product.input_value(1).get_node().get_data())
    return scales


def _read_biases(before: ov.Model, after: ov.Model) -> dict[str, tuple[float, ...]]:
    """Those that changed, by the name of their convolution."""
    old, new = (
        {
            operation.get_friendly_name(): operation.input_value(1).get_node().get_data()
            for operation in graph.get_ordered_ops()
            if operation.get_friendly_name().endswith(".bias")
        }
        for graph in (before, after)
    )
    return {
        name.removesuffix(".bias"): _decimals(values)
        for name, values in new.items()
        if not np.array_equal(values, old[name])
    }


def _answer(graph: ov.Model, tile: Batch) -> Batch:
    compiled = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": ov.Type.f32})
    return np.array(compiled([tile])[0])


def _decimals(values: "np.ndarray[Any, Any]") -> tuple[float, ...]:
    """The shortest decimals that are these float32 values again when they are read."""
    return tuple(float(str(value)) for value in values.astype(np.float32).ravel())
