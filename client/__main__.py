"""The `maskwell` command: segment files with a running service; serve, train and evaluate on this machine."""

import argparse
import asyncio
import glob
import itertools
import os
import re
import secrets
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from client.api import DEFAULT_URL, SUFFIXES, AsyncClient, Client, ClientError, Format, Output, Page, ServiceError

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".npy",
    ".tif", ".tiff", ".btf", ".tf8", ".lsm", ".stk", ".svs",
)  # fmt: skip
JOBS = 4
# Names that results get beside their images (_name_result), without suffix.
_RESULT = re.compile(rf"(?P<image>.+)_(?:{'|'.join(get_args(Output))})(?:_p(?:all|[0-9]+))?(?:_c(?:[^\W_]|-)*)?")
_LOOKED_FOR = f", but for results of earlier runs; looked for {', '.join(IMAGE_SUFFIXES)}"
# Refusals of the request, whatever the file is.
ALIKE_FOR_ALL = ("invalid_parameter", "unknown_model", "key_required")
KEY_VARIABLE = "MASKWELL_KEY"
ANSWER_TIMEOUT_S = 30.0  # /health waits for nothing


@dataclass(frozen=True)
class _Task:
    image: Path
    stem: Path  # of the result, without suffix


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its status is 0, 1 where a file failed, 2 where it cannot start or go on, 130 on Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # these have command lines of their own, and load much that the others do without
    if given and given[0] in ("serve", "key"):
        from app.__main__ import main as serve

        return serve(given)
    if given and given[0] in ("train", "evaluate", "publish"):
        try:
            from training.__main__ import main as train

        except ModuleNotFoundError:  # an image that serves and no more
            print("error: the training package is not installed: pip install 'maskwell[training]'", file=sys.stderr)
            return 2
        return train(["fit" if given[0] == "train" else given[0], *given[1:]])
    options = _parser().parse_args(given)
    try:
        status: int = options.run(options)
    except (ClientError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        return 130
    return status


def _segment(options: argparse.Namespace) -> int:
    tasks = _plan(options.files, options.out, _name_result(options))
    todo = tasks if options.overwrite else [task for task in tasks if not _is_done(task)]
    if len(todo) < len(tasks):
        print(
            f"{len(tasks) - len(todo)} of {len(tasks)} results are there already, whatever settings made them "
            "(--overwrite makes them anew)",
            file=sys.stderr,
        )
    if not todo:
        return 0
    with Client(options.url, retries=0, key=options.key) as client:
        client.health()  # one clear error, not one a file
    if options.out is not None:
        if options.out.exists() and not options.out.is_dir():
            raise ClientError(f"--out {options.out} is a file; it has to be a folder")
        options.out.mkdir(parents=True, exist_ok=True)  # before anything is computed in vain
    failed = asyncio.run(_segment_all(todo, options))
    print(f"{len(todo) - failed} of {len(todo)} images segmented", file=sys.stderr)
    return 1 if failed else 0


def _name_result(options: argparse.Namespace) -> str:
    """What the name of a result adds to that of its image."""
    kind: str = options.output if options.page is None else f"{options.output}_p{options.page}"
    if options.channel is not None:  # names of channels may hold anything
        kind += "_c" + "".join(char if char.isalnum() else "-" for char in options.channel)
    return kind


async def _segment_all(tasks: Sequence[_Task], options: argparse.Namespace) -> int:
    failed = 0
    lost: ClientError | None = None  # for what would befall every other file too
    waiting = iter(tasks)
    async with AsyncClient(options.url, key=options.key) as client:
        with tqdm(total=len(tasks), unit="image", disable=None) as bar:

            async def work() -> None:
                nonlocal failed, lost
                for task in waiting:  # shared: each worker takes the next
                    if lost:
                        return
                    try:
                        answer = await client.fetch(
                            task.image,
                            output=options.output,
                            model=options.model,
                            threshold=options.threshold,
                            high_threshold=options.high_threshold,
                            min_area_px=options.min_area_px,
                            page=options.page,
                            channel=options.channel,
                            axes=options.axes,
                            level=options.level,
                            file_format=options.format,
                        )
                        _write(task.stem.with_name(task.stem.name + answer.suffix), answer.content)
                    except ServiceError as error:
                        if error.code in ALIKE_FOR_ALL:
                            lost = error
                            return
                        failed += 1
                        _complain(task, f"{error} ({error.code})")
                    except ClientError as error:
                        if not await _answers(options):  # each of the others would wait as long, for the same end
                            lost = ClientError(f"{error}; the same command goes on where it was")
                            return
                        failed += 1
                        _complain(task, str(error))
                    except (OSError, ValueError) as error:  # the last: a name that HTTP cannot say
                        failed += 1
                        _complain(task, str(error))
                    bar.update()

            async with asyncio.TaskGroup() as group:
                for _ in range(options.jobs):
                    group.create_task(work())
    if lost:
        raise lost
    return failed


async def _answers(options: argparse.Namespace) -> bool:
    async with AsyncClient(options.url, retries=0, timeout_s=ANSWER_TIMEOUT_S, key=options.key) as client:
        try:
            await client.health()
        except ServiceError:  # somebody is there, if only a proxy
            return True
        except ClientError:
            return False
    return True


def _complain(task: _Task, words: str) -> None:
    name = str(task.image).encode(errors="replace").decode()  # not every name on a disk is text
    name = name if name.isprintable() else repr(name)  # a line a file, whatever stands in its name
    tqdm.write(f"error: {name}: {words}", file=sys.stderr)


def _write(path: Path, data: bytes) -> None:
    """In one step, so that a run that was stopped leaves no half of a file that the next one would take for whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _plan(files: Sequence[Path], out: Path | None, kind: str) -> list[_Task]:
    tasks = []
    for path in files:
        if not path.exists() and glob.has_magic(str(path)):  # a pattern that no shell has spelt out
            start = _fixed_part(path)
            found = _without_results(sorted(start.glob(str(path.relative_to(start)))), start, out)
            if not found:
                raise ClientError(f"{path} matches no images{_LOOKED_FOR}")
            tasks += [_task(file, (out / file.relative_to(start)) if out else file, kind) for file in found]
        elif path.is_dir():
            found = _without_results(sorted(path.rglob("*")), path, out)
            if not found:
                raise ClientError(f"{path} holds no images{_LOOKED_FOR}")
            # folders below keep their place in the folder of results
            tasks += [_task(file, (out / file.relative_to(path)) if out else file, kind) for file in found]
        elif path.is_file():
            tasks.append(_task(path, (out / path.name) if out else path, kind))
        else:
            raise ClientError(f"{path} does not exist")
    clash = next((stem for stem, count in Counter(task.stem for task in tasks).items() if count > 1), None)
    if clash:
        raise ClientError(f"several images would be written to {clash}.*; run them into folders of their own")
    inputs = {task.image.resolve().with_suffix("") for task in tasks}
    overwritten = next((task.stem for task in tasks if task.stem.resolve() in inputs), None)
    if overwritten:
        raise ClientError(
            f"{overwritten}.* is an input and would be taken for a result; say --out, or name the folder, "
            "or the pattern in quotes, which leave results out"
        )
    return tasks


def _task(image: Path, place: Path, kind: str) -> _Task:
    return _Task(image, place.with_name(f"{image.stem}_{kind}"))


def _fixed_part(pattern: Path) -> Path:
    """The folder that all matches lie in: folders below it keep their place in the folder of results."""
    parts = list(itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    return Path(*parts)


def _without_results(files: Sequence[Path], root: Path, out: Path | None) -> list[Path]:
    """The images among files found below `root`: no results of earlier runs, be they beside them or in `out` below."""
    images = [file for file in files if _is_image(file)]
    if out is not None and root.resolve() in out.resolve().parents:
        images = [file for file in images if out.resolve() not in file.resolve().parents]
    stems: dict[Path, set[str]] = {}  # of the images in a folder, be they asked for or not

    def is_result(file: Path) -> bool:
        if not (match := _RESULT.fullmatch(file.stem)):
            return False
        below = file.parent.relative_to(root).parts
        # beside its image, or in a folder of results that has the folders of the images below it
        return any(match["image"] in stems_in(root.joinpath(*below[n:])) for n in range(len(below) + 1))

    def stems_in(folder: Path) -> set[str]:
        if folder not in stems:
            stems[folder] = {other.stem for other in folder.iterdir() if _is_image(other)} if folder.is_dir() else set()
        return stems[folder]

    kept = [file for file in images if not is_result(file)]
    if len(kept) < len(images):
        first = next(filter(is_result, images))
        print(
            f"{len(images) - len(kept)} files are left out, for their names are those of results of earlier runs: "
            f"{first.name}; name a file itself to have it segmented all the same",
            file=sys.stderr,
        )
    return kept


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _is_done(task: _Task) -> bool:
    return any(task.stem.with_name(task.stem.name + suffix).exists() for suffix in SUFFIXES.values())


def _models(options: argparse.Namespace) -> int:
    with Client(options.url, retries=0, key=options.key) as client:
        for model in client.models():
            config = client.model(model["name"])["config"]
            mark = "  (default)" if model["default"] else ""
            print(f"{model['name']}  version {model['version'][:12]}  threshold {config['threshold']:g}{mark}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="maskwell", description="Find the cells in microscope images.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    segment = commands.add_parser(
        "segment",
        help="send images to a running service and keep its results",
        epilog="Exit status: 0; 1 where some file failed; 2 where it cannot start or go on; 130 after Ctrl-C.",
    )
    segment.set_defaults(run=_segment)
    segment.add_argument("files", nargs="+", type=Path, help="images, folders of them, or patterns such as '*.tif'")
    segment.add_argument("--out", type=Path, help="folder for the results; beside each image if left out")
    segment.add_argument("--output", choices=get_args(Output), default="mask", help="what to keep (mask)")
    segment.add_argument("--model", help="by name; the service's default if left out")
    segment.add_argument("--threshold", type=float, help="0 to 1; the model's own if left out")
    segment.add_argument(
        "--high-threshold",
        type=float,
        help="drop cells whose probability nowhere reaches this, 0 to 1; what goes with the threshold if left out",
    )
    segment.add_argument("--min-area-px", type=int, help="drop cells smaller than this; the model's own if left out")
    segment.add_argument("--page", type=_page, help="which plane of a stack, from 0; or all")
    segment.add_argument("--channel", help="which channel: its number, its name, or mean")
    segment.add_argument("--axes", help="what the axes of the files are, where they do not say: ZYX, CYX, ...")
    segment.add_argument("--level", type=int, help="level of a pyramid; 0 is the full resolution")
    segment.add_argument("--format", choices=get_args(Format), help="of pictures; tiff is what ImageJ reads")
    segment.add_argument("--jobs", type=_jobs, default=JOBS, help=f"images under way at a time ({JOBS})")
    segment.add_argument(
        "--overwrite", action="store_true", help="do again what has a result already, as after a change of settings"
    )
    _add_url(segment)
    models = commands.add_parser("models", help="list the models of a running service")
    models.set_defaults(run=_models)
    _add_url(models)
    for name, text in (
        ("serve", "serve on this machine; settings are environment variables"),
        ("key", "make an API key for a service"),
        ("train", "train weights: python -m training fit"),
        ("evaluate", "score weights: python -m training evaluate"),
        ("publish", "put weights into service: python -m training publish"),
    ):
        commands.add_parser(name, help=text, add_help=False)
    return parser


def _add_url(parser: argparse.ArgumentParser) -> None:
    # read when the command runs, not when this is imported
    url = os.environ.get("MASKWELL_URL") or DEFAULT_URL
    parser.add_argument("--url", default=url, help=f"of the service (MASKWELL_URL, or {DEFAULT_URL})")
    # what stands in a command line, everybody on the machine can read
    parser.add_argument(
        "--key", default=os.environ.get(KEY_VARIABLE), help=f"API key; better in the environment, as {KEY_VARIABLE}"
    )


def _page(text: str) -> Page:
    if text != "all" and not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed are the number of a plane, from 0, and all")
    return "all" if text == "all" else int(text)


def _jobs(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 64):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed is 1 to 64")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
