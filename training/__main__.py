"""The command line of the training package: `python -m training COMMAND`."""

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from model.errors import SegmentationError
from model.images import SUFFIXES
from training.config import RECIPES, Recipe, make_recipe
from training.errors import TrainingError

if TYPE_CHECKING:
    from training.data import Pair


INSTALL = "make .venv/training, or pip install 'maskwell[training]'"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 refused or stopped early, 2 where nothing could start."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except (TrainingError, SegmentationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, say; all that matters is written in one step, and stays as it was
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed; training needs more than serving: {INSTALL}", file=sys.stderr)
        return 2
    return status


def _fit(options: argparse.Namespace) -> int:
    from model.checkpoint import read_checkpoint
    from training.data import find_pairs, split_pairs
    from training.train import fit

    overrides = {
        field.name: getattr(options, field.name)
        for field in fields(Recipe)
        if field.name != "name" and getattr(options, field.name) is not None
    }
    recipe = make_recipe(options.recipe, overrides)
    pairs = _choose(find_pairs(options.data), options.only)
    if options.val_data is not None:
        train, validation = pairs, find_pairs(options.val_data)
    else:
        names = _read_names(options.val_list) if options.val_list else None
        train, validation = split_pairs(pairs, fraction=options.val_fraction, names=names, seed=recipe.seed)
    run_folder = options.run_folder or Path("runs") / options.out.stem
    result = fit(
        train,
        validation,
        recipe,
        out=options.out,
        run_folder=run_folder,
        data_name=options.data_name or options.data.resolve().name,
        device=options.device,
        precision=options.precision,
        init=None if options.init is None else read_checkpoint(options.init),
        teacher=None if options.teacher is None else read_checkpoint(options.teacher),
        workers=options.workers,
        max_steps=options.max_steps,
        quiet=options.quiet,
    )
    if not result.finished:
        print(f"stopped; the same command goes on from {run_folder}", file=sys.stderr)
        return 1
    best = result.progress
    print(
        f"{options.out}: validation score {best.best_score:.4f}, from epoch {best.best_epoch + 1}; log in {run_folder}"
    )
    _tell_of_stale_twin(options.out)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from model.segmenter import load_segmenter
    from training.data import find_pairs
    from training.dataset import PairCache
    from training.evaluate import evaluate
    from training.seen import read_seen

    if options.threshold is not None and not 0 <= options.threshold <= 1:
        raise TrainingError(f"threshold {options.threshold}; allowed is 0 to 1")
    pairs = _choose(find_pairs(options.data), options.only)
    segmenter = load_segmenter(options.weights, device=options.device, precision=options.precision)
    cache = PairCache(pairs, quiet=options.quiet)
    _tell_of_seen(read_seen([segmenter.card]).count(cache), len(pairs))
    scores = evaluate(segmenter, cache, threshold=options.threshold, regions=True, quiet=options.quiet)
    title = f"{options.weights} on {len(pairs)} images of {options.data}"
    if options.report is not None:
        from training.report import write_report

        write_report(options.report, title=title, segmenter=segmenter, cache=cache, scores=scores)
    if options.json:
        details = {"curve": scores.curve, "images": [vars(image) for image in scores.images]}
        print(json.dumps(scores.summary() | details, indent=2))
        return 0
    print(title)
    print(f"threshold {scores.threshold:.2f}  Dice {scores.dice:.4f}  IoU {scores.iou:.4f}")
    if scores.cells is not None:
        for key, value in scores.cells.ap.items():
            print(f"AP at IoU {key}: {value:.4f}  mean over images {scores.cells.ap_per_image[key]:.4f}")
        print(f"AJI {scores.cells.aji:.4f}  PQ {scores.cells.pq:.4f}")
        if scores.cells.v_info is not None:
            print(f"V_info {scores.cells.v_info:.4f}  adapted Rand error {scores.cells.adapted_rand_error:.4f}")
    if scores.regions is not None:
        for name, value in vars(scores.regions).items():
            print(f"{name} {value:.4f}")
    for name, look in scores.looks.items():
        ap = f"  AP at IoU 0.5: {look['ap']['0.5']:.4f}" if "ap" in look else ""
        print(f"{name}: {look['n_images']} images  Dice {look['dice']:.4f}{ap}")
    for image in (scores.images[index] for index in scores.worst[:5]):
        regions = "" if image.v_rand is None or scores.regions is None else f" V_rand {image.v_rand:.4f}"
        print(f"worst: {image.name} Dice {image.dice:.4f}{regions}")
    return 0


def _publish(options: argparse.Namespace) -> int:
    from training.data import find_pairs
    from training.errors import RefusedError
    from training.publish import publish

    try:
        report = publish(
            options.candidate,
            find_pairs(options.data),
            to=options.to,
            force=options.force,
            tolerance=options.tolerance,
            device=options.device,
            int8=options.int8,
            quiet=options.quiet,
        )
    except RefusedError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    print(report)
    return 0


def _export_onnx(options: argparse.Namespace) -> int:
    from training.onnx_export import export_onnx

    export_onnx(options.weights, options.out)
    print(options.out)
    return 0


def _quantise(options: argparse.Namespace) -> int:
    from model.twin import twin_path
    from training.data import find_pairs
    from training.errors import RefusedError
    from training.quantise import describe_twin, quantise

    try:
        report = quantise(options.weights, find_pairs(options.data), quiet=options.quiet)
    except RefusedError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    print(f"{twin_path(options.weights)}\n{describe_twin(report)}")
    return 0


def _average(options: argparse.Namespace) -> int:
    from training.average import average

    version = average(options.weights, to=options.to)
    print(f"{options.to}: version {version[:12]}; tune it before it is used")
    _tell_of_stale_twin(options.to)
    return 0


def _tune(options: argparse.Namespace) -> int:
    from model.checkpoint import read_checkpoint
    from training.data import find_pairs
    from training.seen import unseen_pairs
    from training.tune import tune

    pairs = _choose(find_pairs(options.data), options.only)
    _tell_of_seen(len(pairs) - len(unseen_pairs(pairs, read_checkpoint(options.weights).card)), len(pairs))
    found = tune(options.weights, pairs, to=options.to, device=options.device, quiet=options.quiet)
    config = found.config
    print(f"threshold {config.threshold:.2f}  Dice {found.dice:.4f}")
    print(
        f"core_threshold {config.core_threshold}  core_distance {config.core_distance}  "
        f"join_probability {config.join_probability}  high_threshold {config.high_threshold}"
    )
    print(f"score of the cells {found.before:.4f} -> {found.after:.4f}")
    print(f"{options.to}: version {found.version[:12]}")
    _tell_of_stale_twin(options.to)
    return 0


def _export_bioimageio(options: argparse.Namespace) -> int:
    from training.bioimageio_package import export_bioimageio

    export_bioimageio(
        options.weights, options.out, name=options.name, authors=options.author, license_id=options.license
    )
    print(f"{options.out}: try it by `bioimageio test {options.out}`")
    return 0


def _synthesize(options: argparse.Namespace) -> int:
    from training.synthesize import synthesize

    synthesize(options.folder, count=options.count, size_px=options.size_px, seed=options.seed)
    print(f"{options.count} images with instances in {options.folder}")
    return 0


def _tell_of_stale_twin(weights: Path) -> None:
    from model.twin import twin_path

    if twin_path(weights).exists():
        print("its int8 twin was made for what was there before, and is not used: make it anew by quantise")


def _tell_of_seen(seen: int, total: int) -> None:
    if seen:
        print(f"{seen} of the {total} images were trained on: the scores flatter", file=sys.stderr)


def _choose(pairs: "list[Pair]", path: Path | None) -> "list[Pair]":
    """The pairs that a file names; all of them without one."""
    if path is None:
        return pairs
    names = set(_read_names(path))
    missing = sorted(names - {pair.name for pair in pairs})
    if missing or not names:
        raise TrainingError(f"{path} names {missing[0] if missing else 'nothing'}, which the data does not hold")
    return [pair for pair in pairs if pair.name in names]


def _read_names(path: Path) -> list[str]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path}: {error}") from error
    names = [Path(line.strip()) for line in lines if line.strip()]
    return [name.stem if name.suffix.lower() in SUFFIXES else name.name for name in names]  # a name may hold dots


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description="Train, score and publish weights.")
    commands = parser.add_subparsers(required=True)

    fit = commands.add_parser("fit", help="train on a folder of images with truth")
    fit.set_defaults(run=_fit)
    fit.add_argument("data", type=Path, help="folder with image/ and label/ or instances/, or another known layout")
    fit.add_argument("--out", type=Path, required=True, help="where the best checkpoint goes at the end")
    fit.add_argument("--recipe", choices=sorted(RECIPES), default="default")
    fit.add_argument("--run-folder", type=Path, help="folder of this run's state and log; runs/<OUT's stem>")
    fit.add_argument("--only", type=Path, help="file of image names, a line each, that are used at all")
    split = fit.add_mutually_exclusive_group()
    split.add_argument(
        "--val-fraction", type=float, default=0.1, help="of the images, drawn by the seed, that validate"
    )
    split.add_argument("--val-list", type=Path, help="file of image names, a line each, that validate")
    split.add_argument("--val-data", type=Path, help="a second folder that validates")
    fit.add_argument("--data-name", help="what the card calls the data; the folder's name if left out")
    fit.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    fit.add_argument(
        "--precision",
        choices=("32-true", "16-mixed", "bf16-mixed"),
        help="16-mixed on a GPU, bf16-mixed on a CPU that computes in it, else 32-true; classic: 32-true on any CPU",
    )
    fit.add_argument("--init", type=Path, help="weights to begin with instead of random ones")
    fit.add_argument("--teacher", type=Path, help="weights of a larger network whose answers to learn from, too")
    fit.add_argument(
        "--workers", type=int, help="processes that prepare samples; by default none on a CPU, some on a GPU"
    )
    fit.add_argument("--max-steps", type=_positive, help="stop after so many more steps; the same command goes on")
    fit.add_argument("--quiet", action="store_true", help="no progress bar")
    group = fit.add_argument_group("numbers of the recipe", "each overrides the recipe's own")
    hints = get_type_hints(Recipe)
    for field in fields(Recipe):
        if field.name != "name":
            _add_number(group, field.name, hints[field.name])

    evaluate = commands.add_parser("evaluate", help="score weights on a folder of images with truth")
    evaluate.set_defaults(run=_evaluate)
    evaluate.add_argument("weights", type=Path)
    evaluate.add_argument("data", type=Path)
    evaluate.add_argument("--only", type=Path, help="file of image names, a line each, that are scored")
    evaluate.add_argument(
        "--precision",
        choices=("auto", "fp32", "fp16", "bf16", "int8"),
        default="auto",
        help="auto as the service: on a CPU int8 for weights with an int8 twin",
    )
    evaluate.add_argument("--threshold", type=float, help="0 to 1; the checkpoint's own if left out")
    evaluate.add_argument("--report", type=Path, help="write an HTML page with tables and the worst images")
    evaluate.add_argument("--json", action="store_true", help="print everything, each image's scores too")
    _add_common(evaluate)

    publish = commands.add_parser("publish", help="put a candidate into service, unless it is worse")
    publish.set_defaults(run=_publish)
    publish.add_argument("candidate", type=Path)
    publish.add_argument("data", type=Path, help="images with truth that neither was trained on")
    publish.add_argument("--to", type=Path, default=Path("weights/best_model.pth"))
    publish.add_argument("--force", action="store_true", help="publish a worse one too")
    publish.add_argument("--tolerance", type=float, default=0.0, help="of the score, that it may be worse by")
    publish.add_argument("--no-int8", dest="int8", action="store_false", help="make no int8 twin for serving on a CPU")
    _add_common(publish)

    average = commands.add_parser("average", help="the mean of weights that were trained from the same ones")
    average.set_defaults(run=_average)
    average.add_argument("weights", type=Path, nargs="+")
    average.add_argument("--to", type=Path, required=True, help="where the mean goes")

    tune = commands.add_parser("tune", help="choose threshold and parting of cells anew, for other images")
    tune.set_defaults(run=_tune)
    tune.add_argument("weights", type=Path)
    tune.add_argument("data", type=Path, help="images with truth that the weights were not trained on")
    tune.add_argument("--only", type=Path, help="file of image names, a line each, that are used")
    tune.add_argument("--to", type=Path, required=True, help="where the checkpoint goes; may be WEIGHTS itself")
    _add_common(tune)

    export = commands.add_parser("export-bioimageio", help="pack weights for the bioimage.io model zoo")
    export.set_defaults(run=_export_bioimageio)
    export.add_argument("weights", type=Path)
    export.add_argument("out", type=Path, help="the zip to write")
    export.add_argument("--name", required=True, help="of the model, 5 letters at least")
    export.add_argument("--author", action="append", required=True, help="of the model; may be given several times")
    export.add_argument("--license", help="SPDX identifier of the weights' licence, such as CC0-1.0")

    to_onnx = commands.add_parser("export-onnx", help="write the network as ONNX, to be served elsewhere")
    to_onnx.set_defaults(run=_export_onnx)
    to_onnx.add_argument("weights", type=Path)
    to_onnx.add_argument("out", type=Path, help="the file to write")

    quantise = commands.add_parser("quantise", help="make the int8 twin of weights that are there already")
    quantise.set_defaults(run=_quantise)
    quantise.add_argument("weights", type=Path, help="the twin is written beside them")
    quantise.add_argument("data", type=Path, help="images with truth, some that they were trained on and some not")
    quantise.add_argument("--quiet", action="store_true", help="no progress bar")

    synthesize = commands.add_parser("synthesize", help="draw a small data set of cells with truth")
    synthesize.set_defaults(run=_synthesize)
    synthesize.add_argument("folder", type=Path)
    synthesize.add_argument("--count", type=int, default=24)
    synthesize.add_argument("--size-px", type=int, default=256)
    synthesize.add_argument("--seed", type=int, default=0)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}; allowed is 1 or more")
    return value


def _add_number(group: Any, name: str, hint: Any) -> None:
    option = "--" + name.replace("_", "-")
    if hint is bool:
        group.add_argument(option, action=argparse.BooleanOptionalAction, default=None)
    elif get_origin(hint) is not None:  # a Literal
        group.add_argument(option, choices=get_args(hint))
    else:
        group.add_argument(option, type=hint, metavar=hint.__name__.upper())


if __name__ == "__main__":
    sys.exit(main())
