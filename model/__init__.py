"""Maskwell's segmenter: image array to probability, mask and labelled cells; a library that knows no HTTP."""

from model.errors import SegmentationError, WeightsError
from model.segmenter import Segmentation, Segmenter, load_segmenter
from model.unet import UNet

__all__ = ["Segmentation", "SegmentationError", "Segmenter", "UNet", "WeightsError", "load_segmenter"]
