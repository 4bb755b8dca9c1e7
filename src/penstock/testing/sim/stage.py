"""One world: draws a scenario and a plan of faults from the seed, lets them happen, comes to rest, judges.

Invariant: a world's outcome is a function of its seed and of the code. It is judged by what its clients logged, by what
the plane's journal says of removals, by the ledger's own books, and by replaying the journal.
"""

from __future__ import annotations

import random
import traceback

import msgspec

from penstock.config import PlaneConfig
from penstock.errors import abbreviate
from penstock.ledger.machine import Ledger
from penstock.records import GroupPolicy
from penstock.testing import checker
from penstock.testing.sim import roles
from penstock.testing.sim.client import SimClient
from penstock.testing.sim.faults import Faults, HostFaults
from penstock.testing.sim.host import SimHost
from penstock.testing.sim.lost_rows import LossJudge
from penstock.testing.sim.outcome import Outcome
from penstock.testing.sim.plane import LedgerFactory, SimPlane
from penstock.testing.sim.recovery import books_of, differences, state_of
from penstock.testing.sim.roles import Notebook, Scenario, Script
from penstock.testing.sim.world import World

__all__ = ["run_world"]

_FAULTS_END_S = 20.0
_REST_S = 150.0  # a world that has not come to rest so long after its last fault is stuck
_POLICIES = (
    None,
    None,
    GroupPolicy(deadline_s=1.0, on_deadline="drop"),
    GroupPolicy(deadline_s=0.3, on_deadline="partial", min_ready=2),
)
_HOSTS_EVERY = 4
_HOST_GRACE_S = 5.0
_LOOK_S = 0.1  # between two looks at what lies on hosts
_GONE_S = 60.0  # by then the plane has noticed the end of every client


def run_world(seed: int, *, make_ledger: LedgerFactory = Ledger, checked: bool = True, traced: bool = False) -> Outcome:
    """Run one world to its rest and judge it."""
    stage = _Stage(World(seed, traced), make_ledger, checked)
    try:
        stage.play()
    except Exception as broken:  # noqa: BLE001  # top frame of a world: whatever broke is the finding
        where = traceback.extract_tb(broken.__traceback__)[-1]
        what = f"{type(broken).__name__} in {where.name} ({where.filename.rpartition('/')[2]}:{where.lineno}): {broken}"
        stage.violations.append(f"an invariant broke at {stage.world.now:.3f} s: {what}")
    return stage.outcome()


def _draw_scenario(world: World) -> Scenario:
    rng = world.rng
    return Scenario(
        producers=rng.randint(1, 2),
        trainers=rng.randint(1, 2),
        controllers=int(rng.random() < 0.4),
        groups=rng.randint(3, 5),
        group_size=rng.choice((1, 2, 4)),
        two_stages=rng.random() < 0.4,
        whole_groups=rng.random() < 0.6,
        lease_s=rng.choice((None, None, 0.2, 2.0)),
        tight=rng.random() < 0.3,
        max_deliveries=rng.choice((1, 5, 20)),
        policy=rng.choice(_POLICIES),
    )


def _with_hosts(seed: int, scenario: Scenario) -> Scenario:
    """Every fourth world has machines with agents; what they draw is their own: the others stay as they were."""
    if seed % _HOSTS_EVERY != 1:
        return scenario
    replicas, at_least = random.Random(seed).choice(((1, 1), (2, 1), (2, 1), (2, 2)))
    return msgspec.structs.replace(scenario, hosts=2, replicas=replicas, at_least=at_least)


def _config(scenario: Scenario) -> PlaneConfig:
    rows = scenario.group_size * 2 if scenario.tight else 10_000
    return PlaneConfig(
        max_rows=rows,
        max_bytes=rows * 2000,
        abandon_grace_s=5.0,
        max_deliveries=scenario.max_deliveries,
        host_grace_s=_HOST_GRACE_S,
    )


class _Stage:
    """One world with its cast."""

    def __init__(self, world: World, make_ledger: LedgerFactory, checked: bool) -> None:
        self.world = world
        self.violations: list[str] = []
        self.scenario = _with_hosts(world.seed, _draw_scenario(world))
        self.script = Script(scenario=self.scenario, log=[])
        self.plane = SimPlane(world, _config(self.scenario), make_ledger=make_ledger, checked=checked)
        self.plane.on_recovery = self._recovered
        self.clients: dict[str, SimClient] = {}
        self.notebooks: dict[str, Notebook] = {}
        self._make_ledger = make_ledger
        replicas = (self.scenario.replicas, self.scenario.at_least)
        config = self.plane.config
        numbers = range(1, self.scenario.hosts + 1)
        self.hosts = {n: SimHost(world, self.plane, n, config, replicas) for n in numbers}
        self.losses = LossJudge(world, self.plane, self.hosts)

    def play(self) -> None:
        self.plane.start()
        self._start_hosts()
        for name in self._cast():
            self.start(name)
        if self.hosts:
            faults: Faults = HostFaults(self.world, self.plane, self.clients, self.start, self.hosts)
        else:
            faults = Faults(self.world, self.plane, self.clients, self.start)
        faults.plan(_FAULTS_END_S)
        if not self.world.run(_FAULTS_END_S + _REST_S, self._at_rest):
            self.violations.append(f"stuck: {self._what_is_left()}")
        faults.over = True
        self._end()
        self._judge()

    def _start_hosts(self) -> None:
        for host in self.hosts.values():
            host.others = {number: other for number, other in self.hosts.items() if other is not host}
            host.start()
        if self.hosts:
            self.plane.witness = self.losses.noted
            self.world.after(_LOOK_S, self._look)

    def _look(self) -> None:
        if self.plane.up:
            self.losses.look(self.plane.ledger)
        if not self.losses.violations:
            self.world.after(_LOOK_S, self._look)

    def _cast(self) -> list[str]:
        names = [f"producer{i}" for i in range(self.scenario.producers)]
        names += [f"trainer{i}" for i in range(self.scenario.trainers)]
        names += [f"controller{i}" for i in range(self.scenario.controllers)]
        return [*names, "annotator0"] if self.scenario.two_stages else names

    def start(self, name: str) -> None:
        """Start the process of that role, or its successor; not once the world is over."""
        if self.script.over:
            return
        home = self.hosts[self.world.rng.choice(sorted(self.hosts))] if self.hosts else None
        client = SimClient(self.world, self.plane, name, self.world.rng.getrandbits(62) + 1, home=home)
        self.clients[name] = client
        notebook = self.notebooks.setdefault(name, Notebook())
        role = name.rstrip("0123456789")
        if role == "annotator":
            client.run(roles.annotator(client, self.script))
            client.run(roles.annotator(client, self.script))  # two threads of one process
        else:
            program = {"producer": roles.producer, "trainer": roles.trainer, "controller": roles.controller}[role]
            client.run(program(client, self.script, notebook))

    # -- rest ---------------------------------------------------------------------------------------------------------

    def _at_rest(self) -> bool:
        """Everything that was to be done is done; nobody is in the middle of anything that matters."""
        if not self.plane.up or any(self.clients[n].running for n in self.clients if n.startswith("producer")):
            return False
        if any(notebook.step is not None for notebook in self.notebooks.values()):
            return False
        return not any(p.rows for p in state_of(self.plane.ledger).partitions.values())

    def _what_is_left(self) -> str:
        waiting = [c.name for c in self.clients.values() if c.running]
        rows = [key for p in state_of(self.plane.ledger).partitions.values() for key in p.rows]
        return f"clients {waiting} run, rows {abbreviate(rows)} are there, plane up: {self.plane.up}"

    def _end(self) -> None:
        """No more faults: let every client finish, then go; let the plane see them go."""
        self.script.over = True
        world = self.world
        world.run(world.now + 15.0, lambda: not any(c.running for c in self.clients.values()) and self.plane.up)
        for client in self.clients.values():
            client.close()
        if self.hosts:
            self._end_hosts()
        world.run(world.now + _GONE_S, self._all_gone)
        world.run(world.now + 1.0, lambda: False)

    def _end_hosts(self) -> None:
        """Let every agent come back, say and hear everything; then nothing is left that nobody needs."""
        self.world.run(self.world.now + _GONE_S, self._hosts_rest)
        self.violations += self.losses.leaks(self.plane.ledger) if self.plane.up else []
        for host in self.hosts.values():
            host.close()

    def _hosts_rest(self) -> bool:
        quiet = self.plane.up and all(host.is_quiet for host in self.hosts.values())
        return quiet and not any(self.losses.leaks(self.plane.ledger))

    def _all_gone(self) -> bool:
        plane = self.plane
        return plane.up and not plane.dying_clients and not state_of(plane.ledger).sessions

    # -- judgement ----------------------------------------------------------------------------------------------------

    def _recovered(self, corpse: Ledger, reborn: Ledger) -> None:
        """What the journal gives back is what the dead plane had decided, if nothing of it was still unflushed."""
        if self.plane.died_clean:
            self._compare("recovered", corpse, reborn)

    def _compare(self, when: str, live: Ledger, replayed: Ledger) -> None:
        for difference in differences(live, replayed):
            self.violations.append(f"{when} state differs at {self.world.now:.3f}: {difference}")

    def _judge(self) -> None:
        report = self._report()
        self.violations += [f"{kind}: {abbreviate(keys)}" for kind, keys in report.violations.items()]
        self.violations += self.script.surprises
        self.violations += [f"{c.name}: {c.late} calls ended late" for c in self.clients.values() if c.late]
        self.violations += self.losses.violations[:3]
        self._judge_plane()

    def _judge_plane(self) -> None:
        self.violations += books_of(self.plane)
        if self.plane.up:
            self._compare("replayed", self.plane.ledger, self.plane.replayed())

    def _report(self) -> checker.Report:
        """Join the logs; what the plane removed by itself counts as its eviction."""
        log = self.script.log
        removed = self.plane.removed
        evicted = {k: r[0] for k, rs in removed.items() for r in rs if r[0] != "trained"}
        overruled = {k for k in evicted if all(reason != "trained" for reason, _ in removed[k])}
        entries: list[checker.Entry] = [e for e in log if not (isinstance(e, checker.Trained) and e.key in overruled)]
        entries += [checker.Evicted("after", key, reason) for key, reason in sorted(evicted.items())]
        twice = [key for key, reasons in removed.items() if len(reasons) > 1]
        if twice:
            self.violations.append(f"removed twice: {abbreviate(twice)}")
        return checker.check(entries)

    def outcome(self) -> Outcome:
        report = self._report()
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
            hosts=self._of_hosts() if self.hosts else {},
            trace=[str(self.scenario), *self.world.trace] if self.world.traced else [],
        )

    def _of_hosts(self) -> dict[str, int]:
        counted = {
            name: self.world.counts[name] for name in ("sealed twice", "commits begun anew", "hosts not reached")
        }
        return {**counted, "rows lost": self.losses.lost, "blocks saved by their second place": self.losses.saved}
