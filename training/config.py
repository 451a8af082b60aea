"""Recipes: every number of a training run, in one frozen dataclass that is stored whole in the checkpoint."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from training.errors import TrainingError

# Smallest and largest value of each number. The largest are far beyond what is of use: they catch slips.
_ALLOWED: dict[str, tuple[float, float]] = {
    "width": (1, 1024),
    "min_area_px": (0, 1_000_000),
    "crop_px": (0, 4096),
    "crops_per_epoch": (0, 10_000_000),
    "epochs": (1, 1_000_000),
    "batch_size": (1, 4096),
    "lr": (0, 10),
    "momentum": (0, 1),
    "weight_decay": (0, 1),
    "alpha": (0, 1),
    "warmup_steps": (0, 1_000_000),
    "clip_norm": (0, 1e6),
    "dice_weight": (0, 1000),
    "border_weight": (0, 1000),
    "distance_weight": (0, 1000),
    "teacher_weight": (0, 1),
    "ema_decay": (0, 1),
    "patience": (0, 1_000_000),
    "alone_prob": (0, 1),
    "flip_prob": (0, 1),
    "warp_prob": (0, 1),
    "rotate_deg": (0, 180),
    "zoom": (1, 8),
    "stretch": (1, 8),
    "elastic_px": (0, 100),
    "intensity_prob": (0, 1),
    "tint": (0, 1),
    "recolour_prob": (0, 1),
    "stain_prob": (0, 1),
    "invert_prob": (0, 1),
    "paste_prob": (0, 1),
    "gamma": (1, 10),
    "brightness": (0, 1),
    "noise_std": (0, 1),
    "blur_px": (0.3, 20),
    "jpeg_quality": (1, 95),
    "seed": (0, 2**32 - 1),
}


@dataclass(frozen=True)
class Recipe:
    """How to train. Each field is also an option of `python -m training fit`.

    Attributes:
        name: of the recipe that this began as.
        width: channels of the first block.
        bilinear: up-sample by interpolation, else by transposed convolution.
        align_corners: of the interpolation (docs/decisions/0003).
        n_channels: of the input image: 1 (grey) or 3 (RGB).
        border: `auto` adds an output for the places where cells touch, where the data has one label a cell; `no` never.
        distance: likewise an output for the distance from a cell's edge, as a share of the largest in that cell.
        normalisation: see model.checkpoint.ModelConfig.
        min_area_px: cells smaller than this, in pixels, are dropped from answers; goes into the checkpoint.
        crop_px: side of the square crops, in pixels; 0 trains on whole images.
        crops_per_epoch: samples in an epoch; 0 is one for each image.
        balance: draw rare kinds of image (grey or colour, dark or bright ground) more often than their share, and large
            images more often than small ones; False takes each image in turn.
        epochs: at most.
        batch_size: samples a step, over all devices together.
        lr, momentum, weight_decay, alpha: of RMSprop.
        schedule: `constant`, or `cosine` from lr to lr / 100 over the run, after a linear warm-up.
        warmup_steps: of the cosine schedule.
        clip_norm: largest norm of the gradient; 0 leaves it as it is.
        dice_weight: weight of the soft Dice loss beside binary cross-entropy.
        border_weight, distance_weight: weights of these outputs' losses beside the cell output's.
        teacher_weight: share of the teacher's answer in the targets, beside the truth; nothing without a teacher.
        ema_decay: of the moving average of the weights that is validated and kept; 0 keeps the weights themselves.
        patience: epochs without a better validation score after which a run stops; 0 never stops early.
        alone_prob: of taking a small part of an image as if it had been sent alone, with a scale of its own; half of
            them without a cell, where the image has such a place. So noise that fills the scale is not taken for cells.
        flip_prob: of a random flip (left-right, up-down or both).
        warp_prob: of a random warp: rotation, zoom, stretch and elastic deformation in one resampling.
        rotate_deg: largest rotation to either side, in degrees.
        zoom: largest magnification, and its inverse the smallest; drawn evenly on a logarithmic scale.
        stretch: largest ratio of the magnifications of two axes at right angles.
        elastic_px: largest displacement of the control points of the elastic deformation, in pixels of the crop.
        intensity_prob: of each of tint, contrast (gamma), brightness, shift, blur, noise and JPEG.
        tint: largest relative change of one colour channel against the others; nothing to a network of one channel.
        recolour_prob: of showing a grey picture of dark ground in one colour, and one in colour as grey; nothing to a
            network of one channel.
        stain_prob: of showing a grey picture of dark ground as stained tissue, what shines as nuclei; nothing to a
            network of one channel.
        invert_prob: of showing a picture with dark and bright exchanged, as an inverted colour table does.
        paste_prob: of laying copies of cells against others, in a grey picture of dark ground (training.paste).
        gamma: largest exponent of contrast, and its inverse the smallest.
        brightness: largest relative change and shift of intensity.
        noise_std: largest standard deviation of Gaussian noise, as a fraction of the 1..99.8 percentile range.
        blur_px: largest standard deviation of Gaussian blur, in pixels.
        jpeg_quality: lowest quality of JPEG; the highest is 95.
        seed: of everything random.
    """

    name: str = "default"
    width: int = 32
    bilinear: bool = True
    align_corners: bool = False
    n_channels: int = 3
    border: Literal["auto", "no"] = "auto"
    distance: Literal["auto", "no"] = "auto"
    normalisation: Literal["percentile", "raw", "unit"] = "percentile"
    min_area_px: int = 20
    crop_px: int = 256
    crops_per_epoch: int = 1000
    balance: bool = True
    epochs: int = 30
    batch_size: int = 4
    lr: float = 1e-4
    momentum: float = 0.9
    weight_decay: float = 1e-6
    alpha: float = 0.99
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: int = 100
    clip_norm: float = 1.0
    dice_weight: float = 1.0
    border_weight: float = 1.0
    distance_weight: float = 1.0
    teacher_weight: float = 0.75
    ema_decay: float = 0.995
    patience: int = 0
    alone_prob: float = 0.1
    flip_prob: float = 0.75
    warp_prob: float = 0.7
    rotate_deg: float = 180.0
    zoom: float = 1.6
    stretch: float = 1.2
    elastic_px: float = 3.0
    intensity_prob: float = 0.3
    tint: float = 0.2
    recolour_prob: float = 0.15
    stain_prob: float = 0.1
    invert_prob: float = 0.08
    paste_prob: float = 0.5
    gamma: float = 1.5
    brightness: float = 0.2
    noise_std: float = 0.08
    blur_px: float = 1.2
    jpeg_quality: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (low, high) in _ALLOWED.items():
            value = getattr(self, name)
            if not low <= value <= high:  # false for NaN
                raise TrainingError(f"{name} {value}; allowed is {low} to {high}")
        if self.lr <= 0:
            raise TrainingError(f"lr {self.lr}; allowed is more than 0")
        if self.n_channels not in (1, 3):
            raise TrainingError(f"n_channels {self.n_channels}; allowed are 1 and 3")
        changes = (
            self.alone_prob,
            self.intensity_prob,
            self.recolour_prob,
            self.stain_prob,
            self.invert_prob,
            self.paste_prob,
        )
        if self.normalisation == "raw" and any(changes):
            raise TrainingError(
                "normalisation raw needs alone_prob, intensity_prob, recolour_prob, stain_prob, invert_prob and "
                "paste_prob 0, whose numbers are shares of a range of 0 to 1"
            )
        if self.crop_px % 64 or self.crop_px == 64:
            raise TrainingError(f"crop_px {self.crop_px}; allowed are 0 (whole images) and multiples of 64 from 128 on")
        if self.crop_px == 0 and self.batch_size > 1:
            raise TrainingError("batch_size of more than 1 needs crops (crop_px); whole images may differ in size")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the checkpoint's card."""
        return asdict(self)


# The tutorial's numbers as they are. Only flips; whole images; grey levels 0..255; no schedule.
CLASSIC = Recipe(
    name="classic",
    width=64,
    align_corners=True,
    border="no",
    distance="no",
    normalisation="raw",
    min_area_px=0,
    n_channels=1,
    crop_px=0,
    crops_per_epoch=0,
    balance=False,
    epochs=40,
    batch_size=1,
    lr=1e-5,
    momentum=0.9,
    weight_decay=1e-8,
    schedule="constant",
    warmup_steps=0,
    clip_norm=0.0,
    dice_weight=0.0,
    ema_decay=0.0,
    alone_prob=0.0,
    flip_prob=0.75,  # flip codes -1, 0, 1 and "none", drawn alike
    warp_prob=0.0,
    intensity_prob=0.0,
    recolour_prob=0.0,
    stain_prob=0.0,
    invert_prob=0.0,
    paste_prob=0.0,
)

# Tissue in electron microscopy, parted by membranes: one output, the cells' insides; strong elastic deformation, and
# little zoom, for the sections of a series have one magnification.
MEMBRANES = Recipe(
    name="membranes",
    n_channels=1,
    border="no",
    distance="no",
    min_area_px=0,
    balance=False,
    alone_prob=0.0,
    invert_prob=0.0,
    paste_prob=0.0,
    warp_prob=0.9,
    zoom=1.2,
    stretch=1.2,
    elastic_px=12.0,
    noise_std=0.05,
    blur_px=1.0,
)

RECIPES = {"default": Recipe(), "classic": CLASSIC, "membranes": MEMBRANES}


def make_recipe(name: str, overrides: dict[str, Any]) -> Recipe:
    """A recipe with some numbers changed.

    Raises:
        TrainingError: an unknown recipe or field, or a value that is not allowed.
    """
    if name not in RECIPES:
        raise TrainingError(f"recipe {name!r}; there are {', '.join(RECIPES)}")
    unknown = set(overrides) - {field.name for field in fields(Recipe)}
    if unknown:
        raise TrainingError(f"a recipe has no {sorted(unknown)[0]!r}")
    return replace(RECIPES[name], **overrides)
