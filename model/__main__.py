"""`python -m model predict FILES... --out DIR`: masks without a server."""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from model.errors import ImageError, SegmentationError
from model.images import SUFFIXES, read_image
from model.outputs import SUFFIXES as FILE_SUFFIXES
from model.outputs import Output, encode_output
from model.segmenter import Segmenter, load_segmenter

OUTPUTS: tuple[Output, ...] = get_args(Output)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 where some file failed, 2 where nothing could start."""
    options = _parser().parse_args(arguments)
    try:
        files = _collect(options.files)
        segmenter = load_segmenter(options.weights, device=options.device)
    except SegmentationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    names = [_result_name(path, options.output, options.out) for path in files]
    clash = next((name for name, count in Counter(names).items() if count > 1), None)
    if clash:
        print(f"error: several inputs would be written to {clash}; run them into folders of their own", file=sys.stderr)
        return 2
    inputs = {path.resolve() for path in files}
    overwritten = next((name for name in names if name.resolve() in inputs), None)
    if overwritten:
        print(f"error: {overwritten} is an input and would be overwritten; say --out", file=sys.stderr)
        return 2
    failed = 0
    for path, name in zip(tqdm(files, unit="image", disable=None), names, strict=True):
        try:
            data, suffix = _predict(segmenter, path, options)
            name.parent.mkdir(parents=True, exist_ok=True)
            name.with_suffix(suffix).write_bytes(data)
        except (ImageError, OSError) as error:
            failed += 1
            tqdm.write(f"error: {error}", file=sys.stderr)
    print(f"{len(files) - failed} of {len(files)} images segmented", file=sys.stderr)
    return 1 if failed else 0


def _predict(segmenter: Segmenter, path: Path, options: argparse.Namespace) -> tuple[bytes, str]:
    image = read_image(path, page=options.page)
    result = segmenter.segment(image, threshold=options.threshold, min_area_px=options.min_area_px)
    provenance = {
        "X-Model-Version": segmenter.version,
        "X-Threshold": f"{result.threshold:.6g}",
    }
    data, media_type = encode_output(options.output, result, image, provenance)
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


def _area(text: str) -> int:
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
        "--min-area-px", type=_area, help="drop cells smaller than this; the checkpoint's own if left out"
    )
    predict.add_argument("--page", type=int, help="which plane of a stack, from 0")
    predict.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser


if __name__ == "__main__":
    sys.exit(main())
