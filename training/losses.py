"""Binary cross-entropy and soft Dice on logits."""

import torch
from torch import Tensor
from torch.nn import functional


def soft_dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 - Dice of probabilities and 0/1 targets, (N, H, W) each, over the whole batch; a scalar in [0, 1].

    The batch counts as one picture, so that crops without a cell neither divide by zero nor count alone.
    Source: Milletari, Navab and Ahmadi, "V-Net", 3DV 2016, doi:10.1109/3DV.2016.79.
    """
    probability = torch.sigmoid(logits)
    overlap = (probability * targets).sum()
    total = (probability * probability).sum() + (targets * targets).sum()
    return 1 - (2 * overlap + 1) / (total + 1)


def segmentation_loss(logits: Tensor, targets: Tensor, *, dice_weight: float, border_weight: float) -> Tensor:
    """The training loss.

    Args:
        logits, targets: (N, K, H, W); the first map is the cell, the second, if any, the border.
        dice_weight: of soft_dice_loss beside the mean binary cross-entropy.
        border_weight: of the border's loss beside the cell's.

    Returns:
        A scalar. With one map and dice_weight 0 it is torch.nn.BCEWithLogitsLoss.
    """
    losses = []
    for index in range(logits.shape[1]):
        loss = functional.binary_cross_entropy_with_logits(logits[:, index], targets[:, index])
        if dice_weight:
            loss = loss + dice_weight * soft_dice_loss(logits[:, index].float(), targets[:, index])
        losses.append(loss if index == 0 else border_weight * loss)
    return torch.stack(losses).sum()
