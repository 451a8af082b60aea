"""The loss against PyTorch's own and against hand-computed values."""

import pytest
import torch

from training.losses import segmentation_loss, soft_dice_loss


def test_one_map_without_dice_is_bce_with_logits_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 8, 8, generator=generator)
    targets = (torch.rand(2, 1, 8, 8, generator=generator) > 0.5).float()
    expected = torch.nn.BCEWithLogitsLoss()(logits, targets)
    assert torch.equal(segmentation_loss(logits, targets, outputs=("cell",), dice_weight=0.0), expected)


def test_soft_dice_of_a_hand_computed_case() -> None:
    # probabilities 0.5 in four pixels, two of them cell: overlap 1, squares 1 + 2
    loss = soft_dice_loss(torch.zeros(1, 2, 2), torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]))
    assert loss.item() == pytest.approx(1 - (2 * 1 + 1) / (1 + 2 + 1))


def test_soft_dice_of_nothing_found_where_nothing_is_costs_nothing() -> None:
    assert soft_dice_loss(torch.full((1, 4, 4), -40.0), torch.zeros(1, 4, 4)).item() == pytest.approx(0, abs=1e-6)


def test_an_output_counts_by_its_weight() -> None:
    logits, targets = torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)
    one = segmentation_loss(logits[:, :1], targets[:, :1], dice_weight=1.0)
    both = segmentation_loss(logits, targets, outputs=("cell", "border"), dice_weight=1.0, weights={"border": 0.25})
    assert both.item() == pytest.approx(1.25 * one.item())


def test_a_distance_is_a_share_so_it_costs_least_where_the_answer_equals_it() -> None:
    shares = torch.tensor([0.1, 0.5, 0.9]).reshape(1, 1, 1, 3)

    def loss(logits: torch.Tensor) -> float:
        return segmentation_loss(logits, shares, outputs=("distance",), dice_weight=1.0).item()

    exact = torch.logit(shares)
    assert loss(exact) < min(loss(exact + 0.1), loss(exact - 0.1))
