"""The training run: steps, validation after each epoch, state that resumes exactly, a stop that loses nothing."""

import ctypes
import fcntl
import io
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import RMSprop
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import training
from model.checkpoint import Architecture, Checkpoint, ModelConfig, Output, write_atomically, write_checkpoint
from model.postprocess import HIGH_THRESHOLD, JOIN_PROBABILITY
from model.quality import PROFILE_KEY, make_profile
from model.runtime import available_cpus, make_runtime
from model.segmenter import Segmenter
from training.config import Recipe
from training.data import Pair
from training.dataset import BatchKeys, CropDataset, PairCache
from training.errors import RunError
from training.evaluate import Scores, evaluate
from training.figures import draw_curves, draw_overlays
from training.lock import publishing
from training.losses import segmentation_loss
from training.seen import read_seen
from training.teacher import Teacher
from training.widen import widen

STATE_FORMAT = "maskwell-run/2"
# A run that is killed without a chance to save loses no more than this.
SAVE_EVERY_S = 300.0
# The cosine schedule ends at this share of the learning rate.
LAST_LR_SHARE = 0.01
# A sample takes some 20 ms of a core.
MAX_WORKERS = 8
# cv2.remap's own limit.
MAX_WARPED_PX = 32_767
# Memory taken from the system at once.
KEPT_AT_ONCE_BYTES = 256 * 1024**2

Precision = Literal["32-true", "16-mixed", "bf16-mixed"]


@dataclass
class Progress:
    """Where a run is; saved whole.

    Attributes:
        epoch, step: of the next step to take; `step` counts within the epoch.
        loss_sum, loss_steps: of the epoch under way.
        best_score, best_epoch: of the best validation so far, see Scores.overall.
        history: a record an epoch.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    best_score: float = -1.0
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class FitResult:
    """How a run ended.

    Attributes:
        finished: False where a signal stopped it; the same command goes on from there.
        best: the checkpoint with the best validation score, if an epoch was finished.
        progress: the last state.
    """

    finished: bool
    best: Path | None
    progress: Progress


def fit(
    train: Sequence[Pair],
    validation: Sequence[Pair],
    recipe: Recipe,
    *,
    out: Path,
    run_folder: Path,
    data_name: str = "",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Precision | None = None,
    init: Checkpoint | None = None,
    teacher: Checkpoint | None = None,
    workers: int | None = None,
    max_steps: int | None = None,
    quiet: bool = False,
) -> FitResult:
    """Train, or go on with a run that was stopped.

    Args:
        train, validation: pairs that share no image.
        recipe: every number. A run goes on only with the recipe and the images that it began with.
        out: where the best checkpoint goes at the end; a file there is replaced in one step.
        run_folder: state, log and pictures of this run. State is saved after each epoch, every few minutes, and on
            SIGINT and SIGTERM.
        data_name: what the card says of the data.
        device: `auto` takes the GPUs that are there. Under torchrun each process takes one, or its share of the CPU.
        precision: mixed precision; None takes `16-mixed` on a GPU, and on a CPU `bf16-mixed` where it computes in
            bfloat16, but for the recipe `classic`, which is the tutorial's arithmetic; else `32-true`.
        init: weights to begin with, of the recipe's architecture, instead of random ones.
        teacher: weights that say, beside the truth, what the network is to answer (training.teacher).
        workers: processes that prepare samples. None takes none on a CPU, whose cores the steps have, and beside each
            GPU its share of the cores, up to MAX_WORKERS.
        max_steps: stop after so many more steps, as a signal would; for trials.
        quiet: no progress bar.

    Raises:
        DataError: a pair cannot be read.
        RunError: another process uses the run folder, or publishes to `out`, or what is in the folder belongs to
            another recipe or split; `init` or `teacher` does not fit the recipe; the same picture is in both splits.
    """
    if out.is_dir():
        raise RunError(f"{out} is a folder; --out names a file")
    if run_folder.exists() and not run_folder.is_dir():
        raise RunError(f"{run_folder} is a file; --run-folder names a folder")
    fabric, chosen = _make_fabric(device, precision, recipe)
    fabric.launch()
    if fabric.device.type == "cpu":
        keep_freed_memory()
    run_folder.mkdir(parents=True, exist_ok=True)
    if workers is None:
        workers = choose_workers(fabric.device.type)
    with _locked(run_folder, fabric), _stop_signals() as stop:
        run = _Run(fabric, chosen, train, validation, recipe, run_folder, data_name, init, teacher, workers, quiet)
        finished = run.steps(stop, max_steps)
        best = run_folder / "best.pth"
        if finished and fabric.is_global_zero:
            with publishing(out):
                write_atomically(out, best.read_bytes())
            # nothing to go on from: the same command, on the data of another day, begins anew
            (run_folder / "state.pth").unlink()
        fabric.barrier()
        return FitResult(finished, best if run.progress.best_epoch >= 0 else None, run.progress)


class _Run:
    """All that lives as long as the run."""

    def __init__(
        self,
        fabric: Fabric,
        precision: Precision,
        train: Sequence[Pair],
        validation: Sequence[Pair],
        recipe: Recipe,
        folder: Path,
        data_name: str,
        init: Checkpoint | None,
        teacher: Checkpoint | None,
        workers: int,
        quiet: bool,
    ) -> None:
        self.fabric, self.recipe, self.folder, self.quiet = fabric, recipe, folder, quiet
        self._data_name = data_name
        self._precision = precision
        self._init_version, self._teacher_version = (None if each is None else each.version for each in (init, teacher))
        self._seen_before = read_seen(each.card for each in (init, teacher) if each is not None)
        hidden = quiet or not fabric.is_global_zero
        self._train = PairCache(train, quiet=hidden)
        if recipe.warp_prob and self._train.largest_side >= MAX_WARPED_PX:
            raise RunError(
                f"an image of {self._train.largest_side:,} px; warping takes sides of less than {MAX_WARPED_PX:,} px: "
                "cut it into parts, or say --warp-prob 0"
            )
        self._validation = PairCache(validation, quiet=hidden) if fabric.is_global_zero else None
        if self._validation is not None:
            self._check_split(self._train, self._validation)
        digest = None if self._validation is None else self._validation.digest
        self._validation_digest: str | None = fabric.broadcast(digest)
        self.config = model_config(recipe, train, self._train.largest_side)
        self._teacher = None if teacher is None else Teacher(teacher, self.config, fabric)
        self._split = {"train": [pair.name for pair in train], "validation": [pair.name for pair in validation]}
        torch.manual_seed(recipe.seed)
        network = self.config.architecture.build().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if init is not None:
            network.load_state_dict(warm_start(init, self.config, network.state_dict()))
        optimizer = RMSprop(
            network.parameters(),
            lr=recipe.lr,
            alpha=recipe.alpha,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
        self._dataset = CropDataset(self._train, recipe, self.config, plain=teacher is not None)
        self._keys = BatchKeys(
            self._dataset.samples_per_epoch, recipe.batch_size, rank=fabric.global_rank, world=fabric.world_size
        )
        self._schedule = LambdaLR(optimizer, _lr_factor(recipe, self._keys.steps * recipe.epochs))
        self.network, self._optimizer = fabric.setup(network, optimizer)
        loader = DataLoader(
            self._dataset, batch_sampler=self._keys, num_workers=workers, persistent_workers=workers > 0
        )
        self._loader = fabric.setup_dataloaders(loader, use_distributed_sampler=False)
        self._ema = (
            {name: value.detach().clone() for name, value in self._state().items()} if recipe.ema_decay else None
        )
        self.progress = Progress()
        self._resume()

    def _check_split(self, train: PairCache, validation: PairCache) -> None:
        """Images that were trained on flatter the scores, and choose a poor epoch."""
        name_of = dict(zip(train.digests, (pair.name for pair in train.pairs), strict=True))
        for pair, digest in zip(validation.pairs, validation.digests, strict=True):
            if digest in name_of:
                raise RunError(
                    f"{pair.name} of the validation images is the same picture as {name_of[digest]} to train on"
                )
        count = self._seen_before.count(validation)
        if count:
            tqdm.write(
                f"{count} of the {len(validation)} validation images were trained on by the weights of --init or "
                "--teacher: the scores will flatter; --val-list names others",
                file=sys.stderr,
            )

    def steps(self, stop: "_Stop", max_steps: int | None) -> bool:
        """Train to the end; False if it was asked to stop before."""
        recipe, progress, per_epoch = self.recipe, self.progress, self._keys.steps
        first = self.fabric.is_global_zero
        writer = SummaryWriter(str(self.folder / "tensorboard")) if first else None
        bar = tqdm(
            total=recipe.epochs * per_epoch,
            initial=progress.epoch * per_epoch + progress.step,
            unit="step",
            disable=self.quiet or not first or None,
        )
        taken, last = 0, max_steps
        saved_at = time.monotonic()
        try:
            while progress.epoch < recipe.epochs and not self._out_of_patience():
                self._keys.epoch, self._keys.first_step = progress.epoch, progress.step
                bar.set_description(f"epoch {progress.epoch + 1}/{recipe.epochs}")
                for images, targets in self._loader:
                    progress.loss_sum += self._step(images, targets)
                    progress.step += 1
                    progress.loss_steps += 1
                    taken += 1
                    bar.update()
                    bar.set_postfix(loss=f"{progress.loss_sum / progress.loss_steps:.4f}")
                    stops, due = self._agree(stop.asked or taken == last, time.monotonic() - saved_at > SAVE_EVERY_S)
                    if stops:
                        if progress.step == per_epoch:
                            break  # the epoch is done but for its validation
                        self._save()
                        return False
                    if due:
                        self._save()
                        saved_at = time.monotonic()
                self._save()  # validation takes a while
                self._end_epoch(writer)
                saved_at = time.monotonic()
                [stops] = self._agree(stop.asked or taken == last)
                if stops and progress.epoch < recipe.epochs:
                    return False
            return True
        finally:
            bar.close()
            if writer is not None:
                writer.close()

    def _agree(self, *answers: bool) -> tuple[bool, ...]:
        """The first process's answers: all do as it does, so that none waits for another forever."""
        agreed: tuple[bool, ...] = self.fabric.broadcast(answers)
        return agreed

    def _step(self, images: Tensor, targets: Tensor) -> float:
        recipe = self.recipe
        self.network.train()
        if self._teacher is not None:
            images, plain = images.chunk(2, dim=1)
            targets = self._teacher.soften(plain, targets, recipe.teacher_weight)
        logits = self.network(images.contiguous(memory_format=torch.channels_last))
        loss = segmentation_loss(
            logits,
            targets,
            outputs=self.config.outputs,
            dice_weight=recipe.dice_weight,
            weights={"border": recipe.border_weight, "distance": recipe.distance_weight},
        )
        self._optimizer.zero_grad()
        self.fabric.backward(loss)
        if recipe.clip_norm:
            # with float16 gradients overflow now and then; the scaler of the loss leaves out such a step
            self.fabric.clip_gradients(
                self.network, self._optimizer, max_norm=recipe.clip_norm, error_if_nonfinite=False
            )
        self._optimizer.step()
        self._schedule.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RunError(f"the loss became {value} at epoch {self.progress.epoch + 1}; a lower lr may help")
        self._update_ema()
        return value

    def _update_ema(self) -> None:
        if self._ema is None:
            return
        done = self.progress.epoch * self._keys.steps + self.progress.step
        # a plain average at first, or the random start would linger
        decay = min(self.recipe.ema_decay, (1 + done) / (10 + done))
        for name, value in self._state().items():
            if value.is_floating_point():
                self._ema[name].lerp_(value.detach(), 1 - decay)
            else:
                self._ema[name].copy_(value)

    def _end_epoch(self, writer: SummaryWriter | None) -> None:
        progress = self.progress
        record = {"epoch": float(progress.epoch + 1), "loss": progress.loss_sum / max(progress.loss_steps, 1)}
        if self._validation is not None:
            state = {name: value.detach().cpu().clone() for name, value in (self._ema or self._state()).items()}
            checkpoint = Checkpoint(state, self.config, {}, "")
            with _own_cudnn_flags():
                runtime = make_runtime(checkpoint, device=str(self.fabric.device), precision="fp32")
                segmenter = Segmenter(checkpoint, runtime)
                scores = evaluate(segmenter, self._validation, tune=True, quiet=self.quiet)
            record |= {"val_dice": scores.dice, "val_iou": scores.iou, "threshold": scores.threshold}
            if scores.cells is not None:
                record |= {f"val_ap{key}": scores.cells.ap[key] for key in ("0.5", "0.7", "0.9", "mean")}
            record["score"] = scores.overall
            record["lr"] = float(self._schedule.get_last_lr()[0])
            if writer is not None:
                for name, value in record.items():
                    writer.add_scalar(name, value, progress.epoch + 1)
            progress.history.append(record)
            if record["score"] > progress.best_score:
                progress.best_score, progress.best_epoch = record["score"], progress.epoch
                config = self.config.model_copy(update={"threshold": scores.threshold})
                write_checkpoint(self.folder / "best.pth", checkpoint.state, config, self._card(scores), half=True)
                draw_overlays(self.folder / "overlays.png", segmenter, self._validation, scores)
            draw_curves(self.folder / "curves.png", progress.history)
            if not self.quiet:
                text = "  ".join(f"{name} {value:.4g}" for name, value in record.items())
                tqdm.write(f"{text}  best {progress.best_score:.4f}")
        progress.epoch += 1
        progress.step, progress.loss_sum, progress.loss_steps = 0, 0.0, 0
        # the other processes stop with the first, so they must know what it knows
        progress.best_score, progress.best_epoch = self.fabric.broadcast((progress.best_score, progress.best_epoch))
        self._save()

    def _out_of_patience(self) -> bool:
        progress, patience = self.progress, self.recipe.patience
        return bool(patience) and progress.best_epoch >= 0 and progress.epoch - 1 - progress.best_epoch >= patience

    def _state(self) -> dict[str, Tensor]:
        module: nn.Module = self.network.module
        module = getattr(module, "module", module)  # DistributedDataParallel wraps once more
        state: dict[str, Tensor] = module.state_dict()
        return state

    def _card(self, scores: Scores) -> dict[str, Any]:
        steps = (self.progress.epoch + 1) * self._keys.steps
        return {
            "data": self._data_name,
            "split": self._split,
            **self._seen_before.and_also(self._train.digests).to_card(),
            "scores": {"validation": scores.summary()},
            PROFILE_KEY: make_profile(self._train.intensities),
            "recipe": self.recipe.to_dict(),
            "init": self._init_version,
            "teacher": self._teacher_version,
            "epoch": self.progress.epoch + 1,
            "steps": steps,
            "samples": steps * self._keys.batch_size,
            "commit": _git_commit(),
            "trained_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "torch": torch.__version__,
        }

    def _fingerprint(self) -> str:
        return json.dumps(
            {
                "recipe": self.recipe.to_dict(),
                "split": self._split,
                "train": self._train.digest,
                "validation": self._validation_digest,
                "init": self._init_version,
                "teacher": self._teacher_version,
                "precision": self._precision,
            },
            sort_keys=True,
        )

    def _save(self) -> None:
        if self.fabric.is_global_zero:
            buffer = io.BytesIO()
            torch.save(
                {
                    "format": STATE_FORMAT,
                    "fingerprint": self._fingerprint(),
                    "network": self._state(),
                    "ema": self._ema,
                    "optimizer": self._optimizer.state_dict(),
                    "schedule": self._schedule.state_dict(),
                    "precision": self.fabric.strategy.precision.state_dict(),
                    "rng": torch.get_rng_state(),
                    "progress": vars(self.progress),
                },
                buffer,
            )
            write_atomically(self.folder / "state.pth", buffer.getvalue())
        self.fabric.barrier()

    def _resume(self) -> None:
        path = self.folder / "state.pth"
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location=self.fabric.device, weights_only=True)
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
            raise RunError(f"{path} is damaged; delete it to begin anew") from error
        if state.get("format") != STATE_FORMAT or state.get("fingerprint") != self._fingerprint():
            raise RunError(
                f"{path} belongs to another recipe, precision, --init or --teacher, or to other images; "
                "name another --run-folder, or delete this one"
            )
        module: nn.Module = self.network.module
        getattr(module, "module", module).load_state_dict(state["network"])
        self._ema = state["ema"]
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])  # the scale of the loss, with float16
        torch.set_rng_state(state["rng"].cpu())
        self.progress = Progress(**state["progress"])
        if not self.quiet and self.fabric.is_global_zero:
            tqdm.write(f"going on with {self.folder} at epoch {self.progress.epoch + 1}, step {self.progress.step + 1}")


def warm_start(init: Checkpoint, config: ModelConfig, fresh: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of `init` for a network that may be wider, see colour where it saw grey, and have other outputs.

    Args:
        init: to begin with.
        config: of the network to train.
        fresh: its random weights; outputs that `init` has none of keep them.

    A network of grey levels 0..255 (`raw`) gets a first convolution for 0..1, or the other way round; that of a softmax
    over background and cell one output, the difference of the two.

    Returns:
        A state dict for that network.

    Raises:
        RunError: the networks differ in more than that.
    """
    old, new = init.config.architecture, config.architecture
    same = {"n_channels": new.n_channels, "n_classes": new.n_classes, "align_corners": new.align_corners}
    wider = {"width": new.width} if old.width < new.width else {}
    if old.model_copy(update=same | wider) != new or old.n_channels not in (1, new.n_channels):
        raise RunError(f"the weights to begin with are of {old}; the recipe's are of {new}")
    narrow = {name: value.clone() for name, value in init.state.items()}
    state = widen(narrow, old, old.model_copy(update=wider)) if wider else narrow
    if old.n_channels != new.n_channels:
        # on grey pictures, whose channels are alike, the answer stays what it was
        first = state["inc.double_conv.0.weight"]
        state["inc.double_conv.0.weight"] = first.repeat(1, new.n_channels, 1, 1) / new.n_channels
    white = {"raw": 255.0, "unit": 1.0, "percentile": 1.0}
    state["inc.double_conv.0.weight"] *= white[init.config.normalisation] / white[config.normalisation]
    outputs = init.config.outputs
    if init.config.activation != config.activation and outputs != ("background", "cell"):
        raise RunError(
            f"the weights to begin with say {', '.join(outputs)} as {init.config.activation}; "
            f"the recipe's are to say {', '.join(config.outputs)} as {config.activation}"
        )
    for name in ("outc.conv.weight", "outc.conv.bias"):
        rows = fresh[name].clone()
        for row, output in enumerate(config.outputs):
            if output in outputs:
                rows[row] = state[name][outputs.index(output)]
                if init.config.activation != config.activation:
                    rows[row] -= state[name][outputs.index("background")]
        state[name] = rows
    return state


def model_config(recipe: Recipe, train: Sequence[Pair], largest_side: int) -> ModelConfig:
    """What a recipe makes of the images: outputs that their truth allows, tiles that suit the crops.

    Args:
        recipe: every number.
        train: the training pairs; border and distance need one label a cell in all of them.
        largest_side: of the images, in pixels, for a recipe that trains on whole ones.
    """
    outputs: list[Output] = ["cell"]
    if all(pair.kind != "mask" for pair in train):
        outputs += ["border"] if recipe.border == "auto" else []
        outputs += ["distance"] if recipe.distance == "auto" else []
    architecture = Architecture(
        n_channels=recipe.n_channels,
        n_classes=len(outputs),
        width=recipe.width,
        bilinear=recipe.bilinear,
        align_corners=recipe.align_corners,
    )
    if recipe.crop_px == 0:
        # whole images: tiles of their size, for with align_corners the answer depends on it
        tile_px: tuple[int, ...] = (min(1024, max(128, -(-largest_side // 64) * 64)),)
    elif recipe.align_corners and recipe.bilinear:
        tile_px = (recipe.crop_px,)
    else:
        tile_px = tuple(sorted({256, 512, recipe.crop_px}))
    return ModelConfig(
        architecture=architecture,
        normalisation=recipe.normalisation,
        outputs=tuple(outputs),
        high_threshold=HIGH_THRESHOLD if "border" in outputs else 0.0,
        min_area_px=recipe.min_area_px,
        join_probability=JOIN_PROBABILITY if "border" in outputs else 1.0,
        tile_px=tile_px,
    )


def choose_workers(device_type: str) -> int:
    """How many processes prepare samples for one device: its share of the cores of this machine."""
    if device_type == "cpu":
        return 0
    return max(1, min(MAX_WORKERS, available_cpus() // _local_world_size()))


def _local_world_size() -> int:
    """Processes that train on this machine; torchrun says so in the environment."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _lr_factor(recipe: Recipe, total: int) -> Callable[[int], float]:
    """What the learning rate is multiplied by at a step, of `total` in the run."""

    def factor(step: int) -> float:
        if recipe.schedule == "constant":
            return 1.0
        if step < recipe.warmup_steps:
            return (step + 1) / recipe.warmup_steps
        share = min(1.0, (step - recipe.warmup_steps) / max(1, total - recipe.warmup_steps))
        return LAST_LR_SHARE + (1 - LAST_LR_SHARE) * 0.5 * (1 + math.cos(math.pi * share))

    return factor


def _make_fabric(device: str, precision: Precision | None, recipe: Recipe) -> tuple[Fabric, Precision]:
    if device == "cuda" and not torch.cuda.is_available():
        raise RunError("device cuda; this machine has no GPU that PyTorch can use")
    on_gpu = device != "cpu" and torch.cuda.is_available()
    world, local = int(os.environ.get("WORLD_SIZE", "1")), _local_world_size()
    on_cpu: Precision = "bf16-mixed" if recipe.name != "classic" and computes_in_bfloat16() else "32-true"
    chosen: Precision = precision or ("16-mixed" if on_gpu else on_cpu)
    fabric = Fabric(
        accelerator="cuda" if on_gpu else "cpu",
        devices=local,
        num_nodes=world // local,
        strategy="ddp" if world > 1 else "auto",
        precision=chosen,
    )
    return fabric, chosen


@contextmanager
def _own_cudnn_flags() -> Iterator[None]:
    """A runtime sets some for the whole process; the steps go on with theirs, in a run that resumes too."""
    flags = torch.backends.cudnn
    before = flags.deterministic, flags.allow_tf32
    try:
        yield
    finally:
        flags.deterministic, flags.allow_tf32 = before


def computes_in_bfloat16() -> bool:
    """Whether this processor has instructions for it; one without is slower in it than in float32 (bench/step.py)."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in every release
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def keep_freed_memory() -> None:
    """Let the C library keep the memory that it frees instead of handing it back to the system.

    A step frees and takes the same large blocks again and again; each time they come back as pages to be faulted in and
    cleared, a quarter of a step's time on a CPU (bench/step.py). Elsewhere than with glibc nothing happens.
    """
    # numbers of glibc's malloc.h
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)
    mallopt(top_pad, KEPT_AT_ONCE_BYTES)


class _Stop:
    asked = False


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """SIGINT and SIGTERM ask for a stop after the step under way; a second one ends at once."""
    stop = _Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        tqdm.write("stopping after this step; the same command goes on from there")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _locked(folder: Path, fabric: Fabric) -> Iterator[None]:
    if not fabric.is_global_zero:
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"another process trains in {folder}") from error
        yield


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(training.__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
