"""The contract as a suite that anybody can run on an adapter, under pytest or alone.

    class TestMyAdapter(ConformanceSuite):
        def make_client(self):
            return MyClient(...)

or ``run(make_client).show()``. ``make_client()`` returns a new client; called again it should return another client of
the same plane, where the adapter can do that (``shares_plane``; None = find out). Planes may be fresh for each case or
shared by all: cases use partitions of their own.

Invariants: a case is a public function of one of the ``conformance_*`` modules, takes a ``World`` and says in its first
line what must hold; what an adapter does not claim to support is skipped with the reason; a case that does not end
within its limit has failed.
"""

from __future__ import annotations

import inspect
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal
from unittest import SkipTest

from penstock.plane.contract import DataPlaneClient
from penstock.testing import (
    conformance_claims,
    conformance_columns,
    conformance_groups,
    conformance_leases,
    conformance_lifecycle,
    conformance_rows,
    conformance_traps,
)
from penstock.testing.conformance_world import Measure, World

__all__ = ["Case", "ConformanceSuite", "Outcome", "Report", "cases", "run"]

CASE_LIMIT_S = 60.0  # a case takes milliseconds; one that takes this long hangs
_MODULES: tuple[ModuleType, ...] = (
    conformance_traps,
    conformance_rows,
    conformance_columns,
    conformance_claims,
    conformance_leases,
    conformance_groups,
    conformance_lifecycle,
)


@dataclass(frozen=True)
class Case:
    """One statement about the contract; ``check`` raises when it does not hold."""

    name: str
    check: Callable[[World], None]

    @property
    def sentence(self) -> str:
        return inspect.getdoc(self.check) or self.name

    def run(self, world: World, limit_s: float = CASE_LIMIT_S) -> None:
        """Run the case in a thread of its own, so that a hang is an ordinary failure."""
        raised: list[BaseException] = []

        def body() -> None:
            try:
                with world:
                    self.check(world)
            except BaseException as error:  # noqa: BLE001  # top frame of this thread: its caller raises it again
                raised.append(error)

        thread = threading.Thread(target=body, name=f"conformance-{self.name}", daemon=True)
        thread.start()
        thread.join(limit_s)
        if thread.is_alive():
            raise AssertionError(f"{self.name} hangs: no end after {limit_s:g} s")
        if raised:
            raise raised[0]


def cases() -> list[Case]:
    """Return every case, the known traps first."""
    return [
        Case(f"{module.__name__.rpartition('conformance_')[2]}-{name}", check)
        for module in _MODULES
        for name, check in vars(module).items()
        if inspect.isfunction(check) and check.__module__ == module.__name__ and not name.startswith("_")
    ]


class ConformanceSuite:
    """The suite for pytest: subclass it, name the subclass ``Test...``, and say how to make a client.

    Attributes:
        shares_plane: whether two clients of ``make_client`` are on one plane; None = find out.
        measure_bytes: returns the bytes of payload memory the plane holds; without it that one case is skipped.
    """

    shares_plane: bool | None = None
    measure_bytes: Measure | None = None

    def make_client(self) -> DataPlaneClient:
        raise NotImplementedError("say how to make a client of your adapter")

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Give pytest the cases."""
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", cases(), ids=[case.name for case in cases()])

    def test_conformance(self, case: Case) -> None:
        """The adapter keeps the contract."""
        case.run(World(self.make_client, shares_plane=self.shares_plane, measure_bytes=type(self).measure_bytes))


@dataclass(frozen=True)
class Outcome:
    """How one case ended; ``why`` is empty when it passed."""

    case: Case
    result: Literal["passed", "failed", "skipped"]
    why: str
    seconds: float


@dataclass(frozen=True)
class Report:
    """The outcomes of a run, in order."""

    outcomes: list[Outcome]

    @property
    def failed(self) -> list[Outcome]:
        return [o for o in self.outcomes if o.result == "failed"]

    @property
    def skipped(self) -> list[Outcome]:
        return [o for o in self.outcomes if o.result == "skipped"]

    @property
    def ok(self) -> bool:
        return not self.failed

    def show(self) -> str:
        """Return the report as text, one line a case."""
        lines = [_line(o) for o in self.outcomes]
        passed = len(self.outcomes) - len(self.failed) - len(self.skipped)
        return "\n".join([*lines, f"{passed} passed, {len(self.failed)} failed, {len(self.skipped)} skipped"])


def run(
    make_client: Callable[[], DataPlaneClient],
    *,
    shares_plane: bool | None = None,
    measure_bytes: Measure | None = None,
    only: Callable[[Case], bool] = lambda _: True,
    quiet: bool = False,
    limit_s: float = CASE_LIMIT_S,
) -> Report:
    """Run the suite without pytest; prints each case as it ends, unless ``quiet``."""
    outcomes = []
    for case in filter(only, cases()):
        outcome = _outcome(case, World(make_client, shares_plane=shares_plane, measure_bytes=measure_bytes), limit_s)
        outcomes.append(outcome)
        if not quiet:
            sys.stdout.write(_line(outcome) + "\n")
    return Report(outcomes)


def _outcome(case: Case, world: World, limit_s: float) -> Outcome:
    started = time.monotonic()
    try:
        case.run(world, limit_s)
    except SkipTest as skip:
        return Outcome(case, "skipped", str(skip), time.monotonic() - started)
    except Exception as error:  # noqa: BLE001  # top frame of a case: whatever it raised is its verdict
        return Outcome(case, "failed", f"{type(error).__name__}: {error}", time.monotonic() - started)
    return Outcome(case, "passed", "", time.monotonic() - started)


def _line(outcome: Outcome) -> str:
    why = f"\n        {outcome.why}" if outcome.why else ""
    return f"{outcome.result:7} {outcome.case.name}: {outcome.case.sentence}{why}"
