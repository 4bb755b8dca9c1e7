"""One world of a run: draws a scenario and faults from the seed, plays until the run is complete, judges.

A life of the controller that ends, in whatever way, is followed by the next until the run is complete. Invariant: a
world's outcome is a function of its seed and of the code.
"""

from __future__ import annotations

import traceback

from penstock.controller.machine import ControllerMachine
from penstock.ledger.machine import Ledger
from penstock.testing.sim.outcome import Outcome
from penstock.testing.sim.plane import SimPlane
from penstock.testing.sim.recovery import books_of, differences, state_of
from penstock.testing.sim.steering.book import Book
from penstock.testing.sim.steering.cast import Cast
from penstock.testing.sim.steering.controller import Controller, MachineFactory
from penstock.testing.sim.steering.faults import RunFaults
from penstock.testing.sim.steering.judge import judge, rows
from penstock.testing.sim.steering.scenario import RunScenario, draw
from penstock.testing.sim.steering.trainer import Trainer
from penstock.testing.sim.steering.workers import Scorer, Worker
from penstock.testing.sim.world import World

__all__ = ["run_world"]

_FAULTS_END_S = 15.0
_REST_S = 200.0  # a run that is not complete so long after its last fault is stuck
_GONE_S = 60.0  # by then the plane has noticed the end of every client


def run_world(
    seed: int, *, make_machine: MachineFactory = ControllerMachine, checked: bool = False, traced: bool = False
) -> Outcome:
    """Play one world and judge it.

    Args:
        seed: decides everything.
        make_machine: what to judge; the real machine, or one with a planted bug.
        checked: check the ledger's invariants after each of its events; the machine's always are.
        traced: keep the last lines of what happened.
    """
    stage = _Stage(World(seed, traced), make_machine, checked)
    try:
        stage.play()
    except Exception as broken:  # noqa: BLE001  # top frame of a world: whatever broke is the finding
        where = traceback.extract_tb(broken.__traceback__)[-1]
        what = f"{type(broken).__name__} in {where.name} ({where.filename.rpartition('/')[2]}:{where.lineno}): {broken}"
        stage.violations.append(f"an invariant broke at {stage.world.now:.3f} s: {what}")
    return stage.outcome()


class _Stage:
    """One world with its cast."""

    def __init__(self, world: World, make_machine: MachineFactory, checked: bool) -> None:
        self.world = world
        self.violations: list[str] = []
        self.scenario: RunScenario = draw(world.rng)
        self.plane = SimPlane(world, self.scenario.plane, make_ledger=Ledger, checked=checked)
        self.plane.on_recovery = self._recovered
        self.book = Book()
        self.cast = Cast(world=world, plane=self.plane, scenario=self.scenario, book=self.book, start=self.start)
        self._make_machine = make_machine

    def play(self) -> None:
        self.plane.start()
        for name in ["trainer", *(f"worker{i}" for i in range(self.scenario.workers)), "controller"]:
            self.start(name)
        if self.scenario.config.ready_tag is not None:
            self.start("scorer")
        faults = RunFaults(self.cast)
        faults.plan(_FAULTS_END_S)
        if not self.world.run(_FAULTS_END_S + _REST_S, self._is_over):
            self.violations.append(f"stuck: {self._what_is_owed()}")
        faults.over = True
        self._end()
        self._judge()

    def start(self, name: str) -> None:
        """Start the process of that name, or its successor; not once the world is over."""
        if self.cast.is_over:
            return
        if name == "controller":
            if not self._is_over():
                self._start_controller()
            return
        kinds = {"trainer": Trainer, "worker": Worker, "scorer": Scorer}
        self.cast.clients[name] = kinds[name.rstrip("0123456789")](self.cast, name)

    def _start_controller(self) -> None:
        controller = Controller(self.cast, self._make_machine)
        self.cast.clients["controller"] = self.cast.controller = controller
        controller.begin()

    # -- rest ---------------------------------------------------------------------------------------------------------

    def _is_over(self) -> bool:
        """The run says that it is complete, or that it cannot go on."""
        finishes = self.book.finishes
        return bool(finishes) and finishes[-1].reason.endswith(("steps are made", "the prompts are used up"))

    def _what_is_owed(self) -> str:
        controller = self.cast.controller
        if not controller.alive:
            return f"the controller is dead; lives ended so: {[f.reason for f in self.book.finishes]}"
        machine = controller.machine
        return f"{machine.statistics()}; owed: {'; '.join(machine.owed(self.world.now))}"

    def _end(self) -> None:
        """No more faults: everybody goes; let the plane see them go."""
        self.cast.is_over = True
        world = self.world
        world.run(world.now + 15.0, lambda: self.plane.up and world.now >= self.plane.frozen_until)
        for client in self.cast.clients.values():
            client.close()
        world.run(world.now + _GONE_S, self._all_gone)
        world.run(world.now + 1.0, lambda: False)

    def _all_gone(self) -> bool:
        plane = self.plane
        return plane.up and not plane.dying_clients and not state_of(plane.ledger).sessions

    # -- judgement ----------------------------------------------------------------------------------------------------

    def _recovered(self, corpse: Ledger, reborn: Ledger) -> None:
        if self.plane.died_clean:
            found = differences(corpse, reborn)
            self.violations += [f"recovered state differs at {self.world.now:.3f}: {one}" for one in found]

    def _judge(self) -> None:
        self.violations += judge(self.scenario, self.book, self.plane, is_complete=self._is_over())
        self.violations += self.cast.surprises
        self.violations += [f"{c.name}: {c.late} calls ended late" for c in self.cast.clients.values() if c.late]
        self.violations += books_of(self.plane)

    def outcome(self) -> Outcome:
        book, record = self.book, self.book.record
        report = rows(book, self.plane)
        return Outcome(
            seed=self.world.seed,
            violations=list(self.violations),
            operations=self.world.counts["operations"],
            acknowledged=report.acknowledged,
            trained=report.trained,
            evicted=sum(report.evicted.values()),
            recovered=report.recovered,
            faults=dict(self.world.faults),
            virtual_s=self.world.now,
            run={
                "steps": book.stand,
                "prompts": 0 if record is None else record.cursor,
                "prompts_trained": 0 if record is None else record.trained,
                "prompts_dropped": 0 if record is None else sum(record.dropped.values()),
                "dispatched": len(book.dispatched),
                "lives": 0 if record is None else record.life,
                "saves": book.saves,
            },
            trace=[str(self.scenario), *self.world.trace] if self.world.traced else [],
        )
