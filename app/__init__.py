"""Maskwell's HTTP service: uploads in; masks, labels and problems out."""

__version__ = "0.1.0"
