"""Binary cross-entropy and soft Dice on logits."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional


def soft_dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 - Dice of probabilities and targets in [0, 1], (N, H, W) each, over the whole batch; a scalar in [0, 1].

    The batch counts as one picture, so that crops without a cell neither divide by zero nor count alone.
    Source: Milletari, Navab and Ahmadi, "V-Net", 3DV 2016, doi:10.1109/3DV.2016.79.
    """
    probability = torch.sigmoid(logits)
    overlap = (probability * targets).sum()
    total = (probability * probability).sum() + (targets * targets).sum()
    return 1 - (2 * overlap + 1) / (total + 1)


def segmentation_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    outputs: Sequence[str] = ("cell",),
    dice_weight: float = 0.0,
    weights: Mapping[str, float] | None = None,
) -> Tensor:
    """The training loss: the sum over outputs of binary cross-entropy and, for those that say yes or no, soft Dice.

    Args:
        logits, targets: (N, K, H, W); targets in [0, 1].
        outputs: what each of the K maps means. `distance` is a share, not a class, so the cross-entropy stands alone.
        dice_weight: of soft_dice_loss beside the mean binary cross-entropy.
        weights: of single outputs' losses; 1 where left out.

    Returns:
        A scalar. With one map and dice_weight 0 it is torch.nn.BCEWithLogitsLoss.
    """
    losses = []
    for index, name in enumerate(outputs):
        loss = functional.binary_cross_entropy_with_logits(logits[:, index], targets[:, index])
        if dice_weight and name != "distance":
            loss = loss + dice_weight * soft_dice_loss(logits[:, index].float(), targets[:, index])
        losses.append((weights or {}).get(name, 1.0) * loss)
    return torch.stack(losses).sum()
