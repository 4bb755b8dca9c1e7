"""The benchmark of the wires: figures from laps, and each carrier really carrying between processes."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import pytest

from penstock.errors import DataPlaneUnavailable
from penstock.ops.bench.carriers import CARRIERS
from penstock.ops.bench.carriers.copying import Copying
from penstock.ops.bench.hire import Worker
from penstock.ops.bench.wires import WireFigure, _figure, _Laps, measure_wires, wire_goals_of
from penstock.ops.report import Report

SOURCE = Path(__file__).resolve().parents[3] / "src"
MIB = 1 << 20


def hired(carrier: str) -> Worker:
    return Worker(carrier, Path(sys.executable), SOURCE, module="penstock.ops.bench.carry")


@pytest.mark.parametrize("carrier", CARRIERS)
def test_every_carrier_carries(carrier: str) -> None:
    """Each fetches what the other process has, checks that it arrived, and says how long it took."""
    before = set(Path(tempfile.gettempdir()).glob("penstock-bench-*"))
    with hired(carrier) as worker:
        worker.ask({"do": "open"}, 60.0)
        for nbytes in (8, 3 * MIB):
            answer = worker.ask({"do": "fetch", "nbytes": nbytes, "times": 2}, 60.0)
            assert len(answer["seconds"]) == len(answer["cpu_s"]) == 2
            assert min(answer["seconds"]) > 0
    assert set(Path(tempfile.gettempdir()).glob("penstock-bench-*")) == before


def test_what_did_not_arrive_is_not_measured() -> None:
    """A carrier that leaves the buffer as it was is an error, not a figure."""

    class Idle(Copying):
        async def fetch(self, buffer: memoryview) -> None:
            pass

    from penstock.ops.bench.carry import _carry_out

    with pytest.raises(ValueError, match="not what was sent"):
        asyncio.run(_carry_out(Idle(), memoryview(bytearray(64)), {"nbytes": 64, "times": 1}))


def test_an_unknown_carrier_is_an_answer() -> None:
    """A process that cannot start its carrier is a failure that says so."""
    with hired("pigeons") as worker, pytest.raises(DataPlaneUnavailable, match="pigeons"):
        worker.ask({"do": "open"}, 60.0)


def test_rates_are_of_medians_and_beside_what_they_are_built_on() -> None:
    """A wire's rate is compared with that of memcpy and of its own plain peer, in the same run."""
    rates = {"memcpy": 10.0, "sockets": 4.0, "tcp": 3.8}
    figure = _figure("tcp", _Laps([0.01, 0.02, 0.03], [1e-4], [0.005]), rates)
    assert figure.of_plain == pytest.approx(0.95)
    assert figure.of_memcpy == pytest.approx(0.38)
    assert figure.best_gb_s == pytest.approx(6.71, abs=0.01)
    assert figure.round_trip_us == pytest.approx(100.0)
    assert _figure("sockets", _Laps([1.0], [1.0], [1.0]), rates).of_plain is None


def test_goals_are_those_that_were_measured() -> None:
    """The wires have a goal beside their plain peers; encryption has none; without the peer there is none."""
    figures = [
        WireFigure("tcp", 3.8, 4.0, 1.0, 50.0, 0.4, 0.95),
        WireFigure("tls", 1.0, 1.0, 1.0, 50.0, 0.1, 0.25),
        WireFigure("ucx", 3.0, 4.0, 1.0, 50.0, 0.4, None),
    ]
    (goal,) = wire_goals_of(figures)
    assert (goal.what, goal.goal, goal.met) == ("wire tcp / plain sockets", 0.9, True)


def test_a_carrier_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are measured, and the report says what is missing."""
    monkeypatch.setattr("penstock.ops.bench.wires.CARRIERS", {"memcpy": (), "ucx": ("no-such-package",)})
    left_out: dict[str, str] = {}
    (figure,) = measure_wires(Report(as_json=True), 1, left_out)
    assert figure.carrier == "memcpy"
    assert left_out == {"ucx": "not installed: no-such-package"}
