"""Builds, evaluates and publishes weights: `python -m training --help`."""
