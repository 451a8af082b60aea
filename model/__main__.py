"""`python -m model predict FILES... --out DIR`: masks without a server."""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from model.errors import ImageError, SegmentationError
from model.images import SUFFIXES, file_errors, open_image
from model.outputs import NEEDS_IMAGE, PICTURES, Format, Output, encode_output, encode_plane, join_planes
from model.outputs import SUFFIXES as FILE_SUFFIXES
from model.runtime import Precision
from model.segmenter import Segmenter, load_segmenter
from model.source import Page, Selection

# Whoever runs this has the files at hand, so the limit is there for memory alone, and above the service's.
MAX_PIXELS = 1 << 30
OUTPUTS: tuple[Output, ...] = get_args(Output)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 where some file failed, 2 where nothing could start."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.format == "tiff" and options.output not in (*PICTURES, "all"):
        parser.error(f"--output {options.output} is no picture, and has one format alone")
    try:
        files = _collect(options.files)
        segmenter = load_segmenter(options.weights, device=options.device, precision=options.precision)
    except SegmentationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    names = [_result_name(path, options.output, options.out) for path in files]
    clash = next((name for name, count in Counter(names).items() if count > 1), None)
    if clash:
        print(f"error: several inputs would be written to {clash}; run them into folders of their own", file=sys.stderr)
        return 2
    inputs = {path.resolve().with_suffix("") for path in files}  # a result's own suffix is not known yet
    overwritten = next((name for name in names if name.resolve().with_suffix("") in inputs), None)
    if overwritten:
        print(f"error: {overwritten} is an input and would be overwritten; say --out", file=sys.stderr)
        return 2
    failed = 0
    for path, name in zip(tqdm(files, unit="image", disable=None), names, strict=True):
        try:
            data, suffix = _predict(segmenter, path, options)
            name.parent.mkdir(parents=True, exist_ok=True)
            name.with_suffix(suffix).write_bytes(data)
        except (ImageError, OSError) as error:  # name the file themselves
            failed += 1
            tqdm.write(f"error: {error}", file=sys.stderr)
        except (SegmentationError, MemoryError) as error:
            failed += 1
            tqdm.write(f"error: {path}: {str(error) or 'no memory for it'}", file=sys.stderr)
    print(f"{len(files) - failed} of {len(files)} images segmented", file=sys.stderr)
    return 1 if failed else 0


def _predict(segmenter: Segmenter, path: Path, options: argparse.Namespace) -> tuple[bytes, str]:
    selection = Selection(options.page, options.channel, options.axes, options.level)
    output: Output = options.output
    several = output != "view" and options.format != "png"
    threshold = segmenter.config.threshold if options.threshold is None else options.threshold
    provenance = {"X-Model-Version": segmenter.version, "X-Threshold": f"{threshold:.6g}"}
    with file_errors(path), open_image(path.read_bytes(), selection, max_pixels=MAX_PIXELS, several=several) as source:
        size = source.pixel_size
        if size is not None:
            provenance["X-Pixel-Size-Um"] = str(size)
        parts = []
        for plane in range(source.n_planes):
            # a large plane that can be is read by rows, and never decoded as a whole
            by_rows = source.n_planes == 1 and source.by_rows and output not in NEEDS_IMAGE
            image = None if by_rows else source.read(plane)
            result = segmenter.segment(
                source if image is None else image,
                threshold=threshold,
                high_threshold=options.high_threshold,
                min_area_px=options.min_area_px,
            )
            if source.n_planes == 1:
                data, media_type = encode_output(
                    output, result, image, provenance, file_format=options.format or "png", pixel_size=size
                )
            else:
                parts.append(encode_plane(output, result, image, pixel_size=size))
        if parts:
            data, media_type = join_planes(
                output, parts, provenance, axes=source.axes, sizes=source.sizes, pixel_size=size
            )
    return data, FILE_SUFFIXES[media_type]


def _result_name(path: Path, output: str, folder: Path | None) -> Path:
    return (folder or path.parent) / f"{path.stem}_{output}.png"


def _collect(paths: list[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            images = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
            # results of an earlier run beside their images are not images to segment
            results = {f"{file.stem}_{output}" for file in images for output in OUTPUTS}
            found = [file for file in images if file.stem not in results]
            if not found:
                raise ImageError(f"{path} holds no images; looked for {', '.join(SUFFIXES)}")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise ImageError(f"{path} does not exist")
    return files


def _threshold(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}; allowed is 0 to 1")
    return value


def _page(text: str) -> Page:
    return "all" if text == "all" else int(text)


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}; allowed is 0 or more")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model", description="Segment images without a server.")
    commands = parser.add_subparsers(dest="command", required=True)
    predict = commands.add_parser("predict", help="write a mask for each image")
    predict.add_argument("files", nargs="+", type=Path, help="images, or folders of them")
    predict.add_argument("--out", type=Path, help="folder for the results; beside each image if left out")
    predict.add_argument("--weights", type=Path, default=Path("weights/best_model.pth"))
    predict.add_argument("--output", choices=OUTPUTS, default="mask")
    predict.add_argument("--threshold", type=_threshold, help="0 to 1; the checkpoint's own if left out")
    predict.add_argument(
        "--high-threshold",
        type=_threshold,
        help="drop cells whose probability nowhere reaches this, 0 to 1; what goes with the threshold if left out",
    )
    predict.add_argument(
        "--min-area-px", type=_count, help="drop cells smaller than this; the checkpoint's own if left out"
    )
    predict.add_argument("--page", type=_page, help="which plane of a stack, from 0; or all")
    predict.add_argument("--channel", help="which channel: its number, its name, or mean")
    predict.add_argument("--axes", help="what the axes of the file are, where it does not say: ZYX, CYX, ...")
    predict.add_argument("--level", type=_count, default=0, help="level of a pyramid (0, the full resolution)")
    predict.add_argument("--format", choices=get_args(Format), help="of pictures; tiff is what ImageJ reads")
    predict.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    predict.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="auto",
        help="auto is fp16 on a GPU, and on a CPU int8 for weights with an int8 twin, else fp32",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
