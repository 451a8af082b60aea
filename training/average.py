"""Average the weights of runs that began from the same ones: often better than each of them, and as quick as one."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from training.errors import TrainingError
from training.lock import publishing
from training.seen import read_seen
from training.widen import widen


def average(weights: Sequence[Path], *, to: Path) -> str:
    """Write the mean of several checkpoints; threshold and what else is in the config come from the last.

    Args:
        weights: two or more checkpoints of one architecture, one of which the others were trained from, or that were
            all trained from the same one. Those of runs with nothing in common give nonsense. Narrower ones are
            widened as `fit --init` does it; the last is the widest.
        to: where the checkpoint goes, its convolutions as float16; replaced in one step.

    Returns:
        The version of the new file.

    Raises:
        TrainingError: fewer than two, or networks that differ.
        WeightsError: a file cannot be used.

    Source: Wortsman et al., "Model soups", ICML 2022, arXiv:2203.05482.
    """
    if len(weights) < 2:
        raise TrainingError(f"{len(weights)} weights to average; two or more are needed")
    checkpoints = [read_checkpoint(path) for path in weights]
    last = checkpoints[-1]
    for path, checkpoint in zip(weights, checkpoints, strict=True):
        if checkpoint.config.architecture.width > last.config.architecture.width:
            raise TrainingError(f"{path} is wider than {weights[-1]}; name the widest last")
        if _network(checkpoint, last) != _network(last, last):
            raise TrainingError(f"{path} is of another network than {weights[-1]}, or sees images otherwise")
    states = [_as_wide_as(last, checkpoint) for checkpoint in checkpoints]
    mean = {}
    for name, value in last.state.items():
        if value.is_floating_point():
            value = torch.stack([state[name] for state in states]).mean(dim=0)
        mean[name] = value
    seen = read_seen(checkpoint.card for checkpoint in checkpoints)
    card = {**last.card, "average_of": [checkpoint.version for checkpoint in checkpoints], **seen.to_card()}
    card.pop("scores", None)  # they are the last one's own
    with publishing(to):
        return write_checkpoint(to, mean, last.config, card, half=True)


def _network(checkpoint: Checkpoint, widest: Checkpoint) -> tuple[object, ...]:
    config = checkpoint.config
    width = max(config.architecture.width, widest.config.architecture.width)
    architecture = config.architecture.model_copy(update={"width": width})
    return architecture, config.outputs, config.normalisation, config.activation


def _as_wide_as(widest: Checkpoint, checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    old, new = checkpoint.config.architecture, widest.config.architecture
    return checkpoint.state if old == new else widen(checkpoint.state, old, new)
