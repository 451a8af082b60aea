"""Files of weights that must never serve, by what is wrong with them."""

import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from model.checkpoint import FORMAT, read_checkpoint

# Where the bomb would leave its mark, if anybody let it off.
BOMB_MARK = Path(tempfile.gettempdir()) / "maskwell-bomb"


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return BOMB_MARK.touch, ()  # type: ignore[return-value]  # any callable will do


def spoil_nan(path: Path) -> None:
    checkpoint = read_checkpoint(path)
    checkpoint.state["outc.conv.bias"][0] = float("nan")
    content = {"format": FORMAT, "config": checkpoint.config.model_dump(mode="json"), "card": {},
               "state_dict": checkpoint.state}  # fmt: skip
    torch.save(content, path)


def spoil_shape(path: Path) -> None:
    checkpoint = read_checkpoint(path)
    checkpoint.state["outc.conv.bias"] = torch.zeros(2)
    content = {"format": FORMAT, "config": checkpoint.config.model_dump(mode="json"), "card": {},
               "state_dict": checkpoint.state}  # fmt: skip
    torch.save(content, path)


def spoil_constant(path: Path) -> None:
    checkpoint = read_checkpoint(path)
    checkpoint.state["outc.conv.weight"].zero_()
    content = {"format": FORMAT, "config": checkpoint.config.model_dump(mode="json"), "card": {},
               "state_dict": checkpoint.state}  # fmt: skip
    torch.save(content, path)


SPOILERS: dict[str, Callable[[Path], object]] = {
    "corrupt": lambda path: path.write_bytes(bytes(len(path.read_bytes()))),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "empty": lambda path: path.write_bytes(b""),
    "NaN": spoil_nan,
    "wrong shape": spoil_shape,
    "says nothing": spoil_constant,
    "pickle bomb": lambda path: path.write_bytes(pickle.dumps(Bomb())),
}
