"""Some seconds of `python -m bench.soak`, and its own check: it sees a leak where there is one."""

import asyncio
from pathlib import Path

import httpx
import numpy as np
import pytest

from bench import soak as bench_soak
from bench.soak import LEAKY, Soak, slope_mb_per_min
from tests.e2e.kit import ServerProcess, draw_cells, to_png
from tests.faults.kit import TIMEOUT, check_at_rest, resident_mib


@pytest.mark.parametrize("growth", [0.0, 2.0])
def test_the_slope_is_that_of_the_second_half(growth: float) -> None:
    noise = np.random.default_rng(0).normal(0, 3, 600)
    warm_up = [(float(second), 100.0 + second) for second in range(300)]
    rest = [(300.0 + second, 400 + growth * second / 60 + noise[second]) for second in range(600)]
    # the half that counts begins within the rest
    assert slope_mb_per_min(warm_up + rest) == pytest.approx(growth * 1.048576, abs=0.3)


def test_nothing_is_wrong_or_lost_under_more_load_than_it_can_take_while_weights_change_and_clients_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_soak, "MEASURE_S", 2.0)
    monkeypatch.setattr(bench_soak, "RELOAD_EVERY_S", 2.0)
    monkeypatch.setattr(bench_soak, "VANISH_SHARE", 0.2)
    soak = Soak(tmp_path, leak_bytes=0)
    with soak.server:
        asyncio.run(soak.run(minutes=0.2, load=1.5))
        check_at_rest(soak.server)
    assert soak.reloads >= 2
    assert set(soak.outcomes) <= {"200", "429", "left", "not sent, too many under way"}
    assert soak.outcomes["200"] > 0
    assert soak.outcomes["left"] > 0


def test_a_service_that_leaks_is_told_from_one_that_does_not(tiny_weights: Path, tmp_path: Path) -> None:
    upload = to_png(draw_cells(64, 64))

    def soak(*command: str) -> float:
        memory = []
        with ServerProcess(tiny_weights, tmp_path / "log", command=command) as server:
            for number in range(-16, 16):  # as if there were one a second; the first ones fill the allocator's stores
                answer = httpx.post(f"{server.url}/segment", files={"file": ("x.png", upload)}, timeout=TIMEOUT)
                assert answer.status_code == 200
                if number < 0:
                    continue
                memory.append((float(number), resident_mib(server.process.pid)))
        return slope_mb_per_min(memory)

    honest, leaky = soak("-m", "app"), soak("-c", LEAKY.format(leak_bytes=4_000_000))
    assert leaky == pytest.approx(240, rel=0.2)
    assert honest < 60
