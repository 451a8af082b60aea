from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from model.checkpoint import Architecture, Checkpoint, ModelConfig
from training.errors import RunError
from training.train import warm_start
from training.widen import widen

KINDS: list[dict[str, Any]] = [
    {"layout": layout, "bilinear": bilinear, "align_corners": False}
    for layout, bilinear in product(("tutorial", "milesial", "milesial-biased"), (True, False))
]


def make_trained(architecture: Architecture) -> nn.Module:
    """A network whose batch norms are no longer what they begin as."""
    torch.manual_seed(0)
    network = architecture.build().train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(2, architecture.n_channels, 32, 32))
    return network.eval()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind['layout']}, bilinear {kind['bilinear']}")
@pytest.mark.parametrize("width", [8, 12, 20])
def test_a_widened_network_answers_as_before(kind: dict[str, Any], width: int) -> None:
    old = Architecture(n_channels=3, n_classes=2, width=8, **kind)
    new = old.model_copy(update={"width": width})
    network = make_trained(old)
    wide = new.build().eval()
    wide.load_state_dict(widen(network.state_dict(), old, new))
    image = torch.rand(1, 3, 48, 64)
    with torch.no_grad():
        torch.testing.assert_close(wide(image), network(image), rtol=1e-4, atol=1e-4)


def test_copies_of_a_channel_grow_apart() -> None:
    old = Architecture(n_channels=1, n_classes=1, width=4, align_corners=False)
    new = old.model_copy(update={"width": 8})
    wide = new.build().train()
    wide.load_state_dict(widen(make_trained(old).state_dict(), old, new))
    image = torch.rand(2, 1, 32, 32)
    nn.functional.binary_cross_entropy_with_logits(wide(image), torch.round(image)).backward()
    gradient = dict(wide.named_parameters())["inc.double_conv.3.weight"].grad
    assert gradient is not None
    assert not torch.allclose(gradient[:4], gradient[4:], rtol=0.05)


def test_training_begins_from_narrower_weights_and_not_from_wider() -> None:
    narrow = ModelConfig(architecture=Architecture(n_channels=1, n_classes=1, width=4), outputs=("cell",))
    architecture = Architecture(n_channels=3, n_classes=2, width=8)
    wide = ModelConfig(architecture=architecture, outputs=("border", "cell"))
    network = make_trained(narrow.architecture)
    grown = architecture.build().eval()
    grown.load_state_dict(warm_start(Checkpoint(network.state_dict(), narrow, {}, ""), wide, grown.state_dict()))
    grey = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(grown(grey.repeat(1, 3, 1, 1))[:, 1:], network(grey), rtol=1e-4, atol=1e-4)
    with pytest.raises(RunError, match="width=8"):
        warm_start(Checkpoint(grown.state_dict(), wide, {}, ""), narrow, network.state_dict())
