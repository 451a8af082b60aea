"""The soak's own check: it sees a leak where there is one. The soak itself is `python -m bench.soak`."""

from pathlib import Path

import httpx
import numpy as np
import pytest

from bench.soak import LEAKY, slope_mb_per_min
from tests.e2e.kit import ServerProcess, draw_cells, to_png
from tests.faults.kit import TIMEOUT, resident_mib


@pytest.mark.parametrize("growth", [0.0, 2.0])
def test_the_slope_is_that_of_the_second_half(growth: float) -> None:
    noise = np.random.default_rng(0).normal(0, 3, 600)
    warm_up = [(float(second), 100.0 + second) for second in range(300)]
    rest = [(300.0 + second, 400 + growth * second / 60 + noise[second]) for second in range(600)]
    # the half that counts begins within the rest
    assert slope_mb_per_min(warm_up + rest) == pytest.approx(growth * 1.048576, abs=0.3)


def test_a_service_that_leaks_is_told_from_one_that_does_not(tiny_weights: Path, tmp_path: Path) -> None:
    upload = to_png(draw_cells(64, 64))

    def soak(*command: str) -> float:
        memory = []
        with ServerProcess(tiny_weights, tmp_path / "log", command=command) as server:
            for number in range(16):  # as if there were one a second
                answer = httpx.post(f"{server.url}/segment", files={"file": ("x.png", upload)}, timeout=TIMEOUT)
                assert answer.status_code == 200
                memory.append((float(number), resident_mib(server.process.pid)))
        return slope_mb_per_min(memory)

    honest, leaky = soak("-m", "app"), soak("-c", LEAKY.format(leak_bytes=4_000_000))
    assert leaky == pytest.approx(240, rel=0.2)
    assert honest < 60
