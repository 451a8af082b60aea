"""A wider U-Net that answers as a narrower one does, to go on training from.

Source: Chen, Goodfellow and Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer", ICLR 2016,
arXiv:1511.05641.
Unlike there the copies of a channel share what they pass on unevenly, so that they grow apart without any noise.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from model.checkpoint import Architecture


def widen(state: Mapping[str, Tensor], old: Architecture, new: Architecture, *, seed: int = 0) -> dict[str, Tensor]:
    """The weights of a network, spread over one of more channels.

    Channels are repeated in turn until there are enough. Whatever reads a channel that is there k times gets k random
    shares of it, which add up to one.

    Args:
        state: state dict of a UNet of `old`.
        old, new: alike but for the width, of which `new` has at least as much.
        seed: of the shares.

    Returns:
        A state dict for a UNet of `new`, float32. In eval mode its logits are the old ones, but for rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        target = {name: value.shape for name, value in new.build().state_dict().items()}
    wide: dict[str, Tensor] = {}

    def convolve(name: str, sources: Tensor, *, transposed: bool = False) -> Tensor:
        """Spread one convolution; which old channel each of its new ones is. `sources` says that of its input."""
        weight = state[f"{name}.weight"].float()
        axis_in, axis_out = (0, 1) if transposed else (1, 0)
        made = torch.arange(target[f"{name}.weight"][axis_out]) % weight.shape[axis_out]
        share = torch.rand((len(made), len(sources)), generator=generator) + 0.5
        totals = torch.zeros(len(made), weight.shape[axis_in]).index_add_(1, sources, share)
        share /= totals[:, sources]
        if transposed:
            share = share.T
        wide[f"{name}.weight"] = (
            weight.index_select(axis_out, made).index_select(axis_in, sources) * share[..., None, None]
        )
        if f"{name}.bias" in state:
            wide[f"{name}.bias"] = state[f"{name}.bias"].float()[made]
        return made

    def convolve_twice(name: str, sources: Tensor) -> Tensor:
        for conv, norm in ((0, 1), (3, 4)):
            sources = convolve(f"{name}.double_conv.{conv}", sources)
            for key in ("weight", "bias", "running_mean", "running_var"):
                wide[f"{name}.double_conv.{norm}.{key}"] = state[f"{name}.double_conv.{norm}.{key}"].float()[sources]
            steps = f"{name}.double_conv.{norm}.num_batches_tracked"
            wide[steps] = state[steps].clone()
        return sources

    x = convolve_twice("inc", torch.arange(old.n_channels))
    skips = [(x, old.width)]
    for level in range(1, 5):
        x = convolve_twice(f"down{level}.maxpool_conv.1", x)
        skips.append((x, old.width * 2**level))
    skips.pop()  # the bottom is no skip connection
    for level in range(1, 5):
        skip, n_old = skips.pop()
        if not new.bilinear:
            x = convolve(f"up{level}.up", x, transposed=True)
        x = convolve_twice(f"up{level}.conv", torch.cat([skip, n_old + x]))
    convolve("outc.conv", x)
    return wide
