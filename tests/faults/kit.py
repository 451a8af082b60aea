"""How often a fault is made to happen: a few times in `make test`, as often as it takes in `make faults`."""

import pytest


def counts(*, short: int, long: int) -> list[object]:
    """Values for parametrize: the short count, and the long one behind the marker `long`."""
    return [short, pytest.param(long, marks=[pytest.mark.long, pytest.mark.timeout(7200)])]
