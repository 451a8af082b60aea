"""The U-Net: layers and forward(), a batch of images in, logits out.

Source: Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation",
MICCAI 2015, doi:10.1007/978-3-319-24574-4_28, in the two PyTorch layouts that are in wide use (decisions/0002).
"""

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

Layout = Literal["tutorial", "milesial", "milesial-biased"]

DEPTH = 4
STRIDE = 2**DEPTH  # four 2x poolings: the sides of a batch divide by this


class DoubleConv(nn.Module):
    """(conv 3x3, batch norm, ReLU) twice; keeps height and width."""

    def __init__(self, in_channels: int, out_channels: int, mid_channels: int, *, bias: bool) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(in_channels, mid_channels, 3, padding=1, bias=bias),
            nn.BatchNorm2d(mid_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid_channels, out_channels, 3, padding=1, bias=bias),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.double_conv(x))


class Down(nn.Module):
    """Halve height and width by max-pooling, then DoubleConv."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(
            nn.MaxPool2d(2), DoubleConv(in_channels, out_channels, out_channels, bias=bias)
        )

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.maxpool_conv(x))


class Up(nn.Module):
    """Double height and width, pad to the skip connection's size, concatenate with it, then DoubleConv."""

    def __init__(self, up: nn.Module, conv: DoubleConv) -> None:
        super().__init__()
        self.up = up
        self.conv = conv

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        x = self.up(below)
        dy, dx = skip.shape[-2] - x.shape[-2], skip.shape[-1] - x.shape[-1]
        if dy or dx:  # odd sizes only; Maskwell's own tiles never need it
            x = functional.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return cast(Tensor, self.conv(torch.cat([skip, x], dim=1)))


class OutConv(nn.Module):
    """1x1 convolution from features to logits."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(x))


class UNet(nn.Module):
    """U-Net of four blocks, with the parameter names of the public PyTorch ones.

    Args:
        n_channels: channels of the input image, >= 1.
        n_classes: output maps, >= 1.
        bilinear: up-sample by interpolation (True) or by a learnt transposed convolution (False).
        width: channels of the first block; the blocks have width * (1, 2, 4, 8, 8).
        layout: whose tensor shapes. `tutorial`: convolutions with bias, 8 * width channels at the bottom.
            `milesial`: no bias, and 16 * width at the bottom where bilinear is False. `milesial-biased`: the same with
            biases, as that repository had it at first.
        align_corners: how interpolation maps the grids. True, as both public layouts were trained, makes the output
            depend on the map's size; False does not (decisions/0003). Unused where bilinear is False.
    """

    def __init__(
        self,
        n_channels: int,
        n_classes: int,
        bilinear: bool = True,
        width: int = 64,
        *,
        layout: Layout = "tutorial",
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        self.n_channels = n_channels
        self.n_classes = n_classes
        self.bilinear = bilinear
        self.width = width
        self.layout = layout
        bias = layout != "milesial"
        newer = layout != "tutorial"
        w = width
        bottom = 16 * w if newer and not bilinear else 8 * w

        def up(below: int, skip: int, out: int) -> Up:
            """`below` channels come from the level underneath, `skip` from the contracting path."""
            module: nn.Module
            if bilinear:
                module = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=align_corners)
                raised = below
            elif newer:
                module = nn.ConvTranspose2d(below, below // 2, 2, stride=2)
                raised = below // 2
            else:
                module = nn.ConvTranspose2d(below, below, 2, stride=2)
                raised = below
            joined = raised + skip
            mid = joined // 2 if newer and bilinear else out
            return Up(module, DoubleConv(joined, out, mid, bias=bias))

        # The milesial layout with transposed convolutions halves the channels on the way up, so each level leaves
        # twice what the others leave.
        out = (w, 2 * w, 4 * w, 8 * w) if bottom == 16 * w else (w, w, 2 * w, 4 * w)
        self.inc = DoubleConv(n_channels, w, w, bias=bias)
        self.down1 = Down(w, 2 * w, bias=bias)
        self.down2 = Down(2 * w, 4 * w, bias=bias)
        self.down3 = Down(4 * w, 8 * w, bias=bias)
        self.down4 = Down(8 * w, bottom, bias=bias)
        self.up1 = up(bottom, 8 * w, out[3])
        self.up2 = up(out[3], 4 * w, out[2])
        self.up3 = up(out[2], 2 * w, out[1])
        self.up4 = up(out[1], w, out[0])
        self.outc = OutConv(out[0], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, n_channels, H, W) float to (N, n_classes, H, W) logits; H and W of at least 16."""
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x4 = self.down3(x3)
        x = self.up1(self.down4(x4), x4)
        x = self.up2(x, x3)
        x = self.up3(x, x2)
        x = self.up4(x, x1)
        return cast(Tensor, self.outc(x))
