"""Models by name: loads every file of weights in a folder, watches it, and swaps what has changed."""

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from app.errors import UnknownModelError, WeightsRefusedError
from app.files import Signature, sign
from app.patience import Patience, TooSlowError
from app.schemas import ModelSummary, ReloadReport
from app.settings import Settings
from model import Segmenter, WeightsError, load_segmenter
from model.compiled_cache import CompiledCache
from model.twin import SUFFIX as TWIN_SUFFIX
from model.twin import twin_path

logger = logging.getLogger("app.registry")

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")  # fit for a header, a URL and a file
# At the start; more would compete for memory and gain nothing.
LOADED_AT_ONCE = 2
# A text beside the weights that is longer is cut: it goes into an answer whole.
MAX_ABOUT_CHARS = 100_000
# Longest that a text may take to be read, in seconds; who asks for the model waits for it.
ABOUT_DEADLINE_S = 5.0


@dataclass(frozen=True)
class Model:
    """A segmenter that serves under a name; what starts with it ends with it, whatever is swapped meanwhile."""

    name: str
    segmenter: Segmenter

    @property
    def version(self) -> str:
        """SHA-256 of its file."""
        return self.segmenter.version

    def summarise(self, *, default: bool) -> ModelSummary:
        """What the API says of it."""
        runtime = self.segmenter.runtime
        return ModelSummary(
            name=self.name,
            version=self.version,
            default=default,
            runtime=runtime.name,
            precision=runtime.precision,
            device=runtime.device,
        )


@dataclass(frozen=True)
class _File:
    """A file of weights, and its int8 twin where there is one: they are loaded, and change, together."""

    path: Path
    signature: tuple[Signature, Signature | None]


class Registry:
    """The models in service.

    Args:
        settings: says where they are and what they run on.
        observe: told of each warm-up: pixels that the network computed, and seconds.
        note_reload: told of each file that is tried after start(): the model's name, and whether it serves.
        on_swap: called when a look at the folder has put new weights into service.
    """

    def __init__(
        self,
        settings: Settings,
        observe: Callable[[int, float], None],
        note_reload: Callable[[str, bool], None] = lambda *_: None,
        on_swap: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._observe = observe
        self._note_reload = note_reload
        self._on_swap = on_swap
        self._cache = CompiledCache(settings.cache_folder)
        self._models: dict[str, Model] = {}
        self._seen: dict[str, tuple[Signature, Signature | None]] = {}
        self._lock = asyncio.Lock()
        self._patience = Patience(settings.load_deadline_s, "weights")
        self._text_patience = Patience(ABOUT_DEADLINE_S, "about")
        self._text_room = asyncio.Semaphore(LOADED_AT_ONCE)
        self._refused: dict[str, str] = {}
        self._refused_twins: dict[str, str] = {}
        self._unfit: dict[str, str] = {}
        self.folder_error: str | None = None  # why the folder cannot be looked into, as long as it can't
        self.last_reload: ReloadReport | None = None

    async def start(self) -> None:
        """Load every model.

        Raises:
            WeightsError: the default one cannot be used. The others are left out and named in `refused`.
        """
        async with self._lock:
            default = self._settings.default_model
            try:
                files = await self._patience.call(self._scan)
            except OSError:
                files = {}  # loading says why
            except TooSlowError as error:
                raise WeightsError(f"the folder of weights does not answer: {error}") from error
            path = self._settings.weights_dir / f"{default}.pth"
            if path.name in self._unfit:
                raise WeightsError(self._unfit[path.name])
            try:
                segmenter = await self._patience.call(self._load, path)
            except TooSlowError as error:
                raise WeightsError(f"{path.name} could not be loaded: {error}") from error
            self._put(default, segmenter)
            if default in files:
                self._seen[default] = files[default].signature
            # Some of a warm-up keeps one core busy; a GPU's graphs are captured one by one.
            limit = asyncio.Semaphore(LOADED_AT_ONCE if segmenter.runtime.device == "cpu" else 1)

            async def load(name: str, file: _File) -> None:
                async with limit:
                    await self._load_file(name, file)

            async with asyncio.TaskGroup() as group:
                for name, file in files.items():
                    if name != default:
                        group.create_task(load(name, file))

    @property
    def default(self) -> Model | None:
        """The model of requests that name none; None before start()."""
        return self._models.get(self._settings.default_model)

    @property
    def models(self) -> list[Model]:
        """Those in service, by name."""
        return [self._models[name] for name in sorted(self._models)]

    @property
    def refused(self) -> dict[str, str]:
        """Files that cannot be used, by model name or, where that is what is wrong, by file name; and why."""
        return self._refused | self._refused_twins | self._unfit

    def get(self, name: str | None) -> Model:
        """The model of that name, or the default one.

        Raises:
            UnknownModelError: there is none; names those there are.
        """
        model = self._models.get(self._settings.default_model if name is None else name)
        if model is None:
            raise UnknownModelError(f"no model {(name or '')[:100]!r}; there are {', '.join(sorted(self._models))}")
        return model

    async def reload(self, name: str) -> Model:
        """Load a model's file again, changed or not, and swap it in.

        Raises:
            UnknownModelError: neither a model nor a file of weights has that name.
            WeightsRefusedError: the file cannot be used; the old model keeps serving.
        """
        async with self._lock:
            files = await self._look()
            if name not in files:
                model = self.get(name)  # a name from the outside becomes a path only by way of the folder's own list
                if f"{name}.pth" in self._unfit:
                    raise WeightsRefusedError(self._unfit[f"{name}.pth"])
                raise WeightsRefusedError(f"{model.name}.pth is gone; version {model.version[:12]} keeps serving")
            error = await self._load_file(name, files[name], report=True)
            if error is not None:
                raise WeightsRefusedError(error)
            return self._models[name]

    async def adopt(self, name: str, version: str) -> None:
        """Serve the version that another process serves already.

        Raises:
            WeightsRefusedError: the file cannot be used, or holds another version by now.
        """
        async with self._lock:
            files = await self._look()
            same = name in self._models and self._models[name].version == version
            if same and (name not in files or await self._unchanged(name, files[name])):
                self._report(name, None)  # whichever worker is asked tells of the reload
                return  # and so is the twin
            error = await self._load_file(name, files[name], report=True) if name in files else f"{name}.pth is gone"
            if error is not None:
                raise WeightsRefusedError(error)
            found = self._models[name].version
            if found != version:
                raise WeightsRefusedError(f"{name}.pth holds version {found[:12]} by now")

    async def watch(self) -> None:
        """Look at the folder again and again; never returns."""
        while True:
            await asyncio.sleep(self._settings.reload_poll_s)
            try:
                await self.poll()
            except Exception:
                logger.exception("could not look for new weights")

    async def poll(self) -> None:
        """Load what is new or changed, forget what is gone. A folder that cannot be read changes nothing."""
        async with self._lock:
            try:
                files = await self._look()
            except WeightsRefusedError as error:
                problem = str(error)
                if problem != self.folder_error:
                    logger.error("%s (%s); what serves keeps serving", problem, self._settings.weights_dir)
                self.folder_error = problem
                return
            if self.folder_error is not None:
                logger.info("the folder of weights can be looked into again")
                self.folder_error = None
            for name, file in files.items():
                if self._seen.get(name) != file.signature and not await self._unchanged(name, file):
                    refusal = await self._load_file(name, file, report=True)
                    if refusal is None:
                        self._on_swap()
            unread = {Path(file).stem for file in self._unfit}  # there, but not to be looked at just now
            for name in (self._seen.keys() | self._refused.keys()) - files.keys() - unread:
                self._seen.pop(name, None)
                self._refused.pop(name, None)
                self._refused_twins.pop(f"{name}{TWIN_SUFFIX}", None)
                if name != self._settings.default_model and name in self._models:
                    del self._models[name]
                    logger.info("model %s is gone", name)

    async def read_about(self, model: Model) -> str | None:
        """What NAME.md says, if it is of this version: published weights do not bring a text of their own."""
        try:
            async with self._text_room:
                return await self._text_patience.call(_read_about, self._settings.weights_dir, model)
        except TooSlowError:  # a share that does not answer
            return None

    @property
    def hangs(self) -> bool:
        """Whether a thread is still reading what nobody waits for any more."""
        return self._patience.stuck or self._text_patience.stuck

    def close(self) -> None:
        """Wait for what is being loaded, unless it was given up."""
        self._patience.close()

    async def _load_file(self, name: str, file: _File, *, report: bool = False) -> str | None:
        """Try a file; what went wrong, or None. A file that was refused is looked at again when it changes."""
        self._seen[name] = file.signature
        error = None
        try:
            self._put(name, await self._patience.call(self._load, file.path))
        except WeightsError as reason:
            error = str(reason).replace(f"{file.path.parent}/", "")
        except TooSlowError as reason:
            error = f"{file.path.name} could not be loaded: {reason}"
        except Exception as reason:
            logger.exception("unforeseen error on loading %s", file.path)
            error = f"{file.path.name} could not be loaded ({type(reason).__name__})"
        if error is None:
            self._refused.pop(name, None)
        else:
            self._refused[name] = error
            logger.error("weights refused: %s", error)
        if report:
            self._note_reload(name, error is None)
            self._report(name, error)
        return error

    def _report(self, name: str, error: str | None) -> None:
        model = self._models.get(name)
        self.last_reload = ReloadReport(
            model=name,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            ok=error is None,
            version=model.version if model else None,
            error=error,
        )

    def _put(self, name: str, segmenter: Segmenter) -> None:
        old = self._models.get(name)
        twin_name = f"{name}{TWIN_SUFFIX}"
        if segmenter.twin_error is None:
            self._refused_twins.pop(twin_name, None)
        else:
            self._refused_twins[twin_name] = segmenter.twin_error.replace(f"{self._settings.weights_dir}/", "")
            logger.warning("int8 twin not used: %s", self._refused_twins[twin_name])
            if old and old.version == segmenter.version and old.segmenter.twin is not None:
                # A twin for weights that are about to come: the old pair is whole, and quicker than half of it.
                return
        self._models[name] = Model(name, segmenter)  # one assignment: a request sees the old one or the new one
        logger.info("model %s serves version %s in %s", name, segmenter.version[:12], segmenter.runtime.precision)

    def _load(self, path: Path) -> Segmenter:
        settings = self._settings
        segmenter = load_segmenter(
            path,
            device=settings.device,
            precision=settings.precision,
            batch_tiles=settings.batch_tiles,
            streams=settings.streams,
            threads=settings.cores,
            cache=self._cache,
        )
        started_at = time.perf_counter()
        segmenter.warm_up()
        tiles_px = sum(side**2 for side in segmenter.config.tile_px)
        self._observe(tiles_px * segmenter.runtime.batch_tiles, time.perf_counter() - started_at)
        return segmenter

    async def _unchanged(self, name: str, file: _File) -> bool:
        """Whether a file that looks new holds the very bytes that serve already."""
        model = self._models.get(name)
        if model is None or name in self._refused:
            return False
        try:
            same = await self._patience.call(self._holds, file, model)
        except TooSlowError:
            return False  # loading it will say so
        if same:
            self._seen[name] = file.signature
            self._refused_twins.pop(f"{name}{TWIN_SUFFIX}", None)  # which is whole again, or gone
        return same

    @staticmethod
    def _holds(file: _File, model: Model) -> bool:
        try:
            with file.path.open("rb") as stream:
                same = hashlib.file_digest(stream, "sha256").hexdigest() == model.version
            twin = model.segmenter.twin
            if file.signature[1] is None:
                same = same and twin is None
            else:
                digest = hashlib.sha256(twin_path(file.path).read_bytes()).hexdigest()
                same = same and twin is not None and twin.digest == digest
        except OSError:
            return False  # loading it will say why
        return same

    async def _look(self) -> dict[str, _File]:
        """The folder's files.

        Raises:
            WeightsRefusedError: they cannot be listed.
        """
        try:
            return await self._patience.call(self._scan)
        except (OSError, TooSlowError) as error:
            reason = getattr(error, "strerror", error)
            raise WeightsRefusedError(f"the folder of weights cannot be looked into: {reason}") from error

    def _scan(self) -> dict[str, _File]:
        files, unfit = {}, {}
        for path in sorted(self._settings.weights_dir.iterdir()):
            if path.suffix != ".pth" or path.name.startswith("."):  # hidden: a file that is being written
                continue
            said = None
            if NAME.fullmatch(path.stem):
                try:
                    signature = sign(path)
                    if signature is not None:
                        files[path.stem] = _File(path, (signature, _sign_twin(path)))
                    elif path.is_symlink():  # else removed since
                        said = f"{path.name} cannot be used: it is a link to nothing that is there"
                except OSError as error:
                    said = f"{path.name} cannot be used: {error.strerror}"
            else:
                said = f"{path.name[:100]!r} names no model; a name has letters, digits, '.', '_' and '-', 100 at most"
            if said is not None:
                unfit[path.name[:100]] = said
                if path.name[:100] not in self._unfit:
                    logger.error("weights refused: %s", said)
        self._unfit = unfit
        return files


def _read_about(folder: Path, model: Model) -> str | None:
    path = folder / f"{model.name}.md"
    try:
        if sign(path) is None:  # raises for a pipe, which would be waited for
            return None
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(MAX_ABOUT_CHARS)
    except OSError:
        return None
    return text if model.version[:12] in text else None


def _sign_twin(weights: Path) -> Signature | None:
    """Of the twin beside a file of weights; where it is no file, loading says so and goes on without it."""
    try:
        return sign(twin_path(weights))
    except OSError:
        return 0, 0, 0, 0
