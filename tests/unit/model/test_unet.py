"""The U-Net equals the published ones: the same weights and the same input give the same output."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.checkpoint import read_checkpoint
from model.unet import UNet


def double_conv(into: int, out: int, mid: int | None = None, *, bias: bool) -> nn.Sequential:
    """Two convolutions with batch norm, as both repositories have them."""
    mid = mid or out
    return nn.Sequential(
        nn.Conv2d(into, mid, kernel_size=3, padding=1, bias=bias),
        nn.BatchNorm2d(mid),
        nn.ReLU(inplace=True),
        nn.Conv2d(mid, out, kernel_size=3, padding=1, bias=bias),
        nn.BatchNorm2d(out),
        nn.ReLU(inplace=True),
    )


class Named(nn.Module):
    """A module under one name: what the checkpoints' parameter names need."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


class Reference(nn.Module):
    """The published network, written down number by number for a width of 64, scaled by width / 64.

    `tutorial`: the layout of 2019, with Up(1024, 256), Up(512, 128), Up(256, 64), Up(128, 64) and Down(512, 512).
    `milesial`: Pytorch-UNet as it is today, with its factor of 2. `milesial-biased`: before it dropped the biases.
    """

    def __init__(self, n_channels: int, n_classes: int, bilinear: bool, layout: str, width: int = 64) -> None:
        super().__init__()
        bias = layout != "milesial"

        def c(channels: int) -> int:
            return channels * width // 64

        def down(into: int, out: int) -> Named:
            conv = Named(double_conv=double_conv(c(into), c(out), bias=bias))
            return Named(maxpool_conv=nn.Sequential(nn.MaxPool2d(2), conv))

        def up(into: int, out: int) -> Named:
            upsample: nn.Module = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            mid = None
            if layout == "tutorial":
                if not bilinear:
                    upsample = nn.ConvTranspose2d(c(into) // 2, c(into) // 2, kernel_size=2, stride=2)
            elif bilinear:
                mid = c(into) // 2
            else:
                upsample = nn.ConvTranspose2d(c(into), c(into) // 2, kernel_size=2, stride=2)
            return Named(up=upsample, conv=Named(double_conv=double_conv(c(into), c(out), mid, bias=bias)))

        self.inc = Named(double_conv=double_conv(n_channels, c(64), bias=bias))
        self.down1, self.down2, self.down3 = down(64, 128), down(128, 256), down(256, 512)
        if layout == "tutorial":
            self.down4 = down(512, 512)
            self.up1, self.up2, self.up3, self.up4 = up(1024, 256), up(512, 128), up(256, 64), up(128, 64)
        else:
            factor = 2 if bilinear else 1
            self.down4 = down(512, 1024 // factor)
            self.up1, self.up2 = up(1024, 512 // factor), up(512, 256 // factor)
            self.up3, self.up4 = up(256, 128 // factor), up(128, 64)
        self.outc = Named(conv=nn.Conv2d(c(64), n_classes, kernel_size=1))

    def forward(self, x: Tensor) -> Tensor:
        part = self.get_submodule
        skips = [part("inc.double_conv")(x)]
        for name in ("down1", "down2", "down3", "down4"):
            pooled = part(f"{name}.maxpool_conv.0")(skips[-1])
            skips.append(part(f"{name}.maxpool_conv.1.double_conv")(pooled))
        x = skips.pop()
        for name in ("up1", "up2", "up3", "up4"):
            skip = skips.pop()
            x = part(f"{name}.up")(x)
            dy, dx = skip.size(2) - x.size(2), skip.size(3) - x.size(3)
            x = functional.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
            x = part(f"{name}.conv.double_conv")(torch.cat([skip, x], dim=1))
        result = part("outc.conv")(x)
        assert isinstance(result, Tensor)
        return result


def lively(network: nn.Module) -> nn.Module:
    """Give batch norms statistics and weights of a trained network, so that no layer is the identity."""
    generator = torch.Generator().manual_seed(7)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            n = module.num_features
            module.running_mean.copy_(torch.randn(n, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(n, generator=generator) + 0.5)
            module.weight.data.copy_(torch.rand(n, generator=generator) + 0.5)
            module.bias.data.copy_(torch.randn(n, generator=generator) * 0.1)
    return network.eval()


LAYOUTS = [(layout, bilinear) for layout in ("tutorial", "milesial", "milesial-biased") for bilinear in (True, False)]


@pytest.mark.parametrize(("layout", "bilinear"), LAYOUTS)
def test_a_bare_state_dict_of_a_published_network_gives_that_networks_output(
    layout: str, bilinear: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    width = 16 if layout == "milesial-biased" else 64  # which differs from milesial in its biases alone
    reference = lively(Reference(3 if layout == "milesial" else 1, 2, bilinear, layout, width))
    path = tmp_path / "weights.pth"
    torch.save(reference.state_dict(), path)
    checkpoint = read_checkpoint(path)
    batch = torch.randn(1, checkpoint.config.architecture.n_channels, 32, 48)
    with torch.inference_mode():
        expected, found = reference(batch), checkpoint.build()(batch)
    assert expected.std() > 0.01  # the comparison below is of something
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=1e-5)
    assert checkpoint.config.architecture.layout == layout
    assert checkpoint.config.architecture.bilinear is bilinear
    assert checkpoint.config.architecture.width == width


@pytest.mark.parametrize(("layout", "bilinear"), LAYOUTS)
def test_odd_sizes_are_padded_as_in_the_published_network(layout: str, bilinear: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    reference = lively(Reference(1, 1, bilinear, layout, width=8))
    path = tmp_path / "weights.pth"
    torch.save(reference.state_dict(), path)
    batch = torch.randn(2, 1, 37, 51)
    with torch.inference_mode():
        np.testing.assert_allclose(
            read_checkpoint(path).build()(batch).numpy(), reference(batch).numpy(), rtol=0, atol=1e-5
        )


def test_the_two_ways_to_interpolate_differ() -> None:
    torch.manual_seed(2)
    aligned = UNet(1, 1, width=4).eval()
    other = UNet(1, 1, width=4, align_corners=False).eval()
    other.load_state_dict(aligned.state_dict())
    batch = torch.randn(1, 1, 32, 32)
    with torch.inference_mode():
        assert (aligned(batch) - other(batch)).abs().max() > 1e-4


@pytest.mark.parametrize(("n_channels", "n_classes", "width"), [(1, 1, 1), (2, 3, 5), (7, 2, 16)])
@pytest.mark.parametrize("bilinear", [True, False])
def test_any_channels_classes_and_width_keep_height_and_width(
    n_channels: int, n_classes: int, width: int, bilinear: bool
) -> None:
    network = UNet(n_channels, n_classes, bilinear, width).eval()
    with torch.inference_mode():
        assert network(torch.zeros(2, n_channels, 48, 64)).shape == (2, n_classes, 48, 64)


def test_the_parameters_have_the_names_that_the_public_checkpoints_use() -> None:
    names = set(UNet(1, 1, bilinear=False, width=2).state_dict())
    assert {
        "inc.double_conv.0.weight",
        "down1.maxpool_conv.1.double_conv.4.running_var",
        "down4.maxpool_conv.1.double_conv.0.bias",
        "up1.up.weight",
        "up4.conv.double_conv.3.weight",
        "outc.conv.bias",
    } <= names


def test_the_gradient_reaches_every_parameter() -> None:
    network = UNet(1, 1, bilinear=False, width=2)
    network(torch.randn(2, 1, 32, 32)).square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
