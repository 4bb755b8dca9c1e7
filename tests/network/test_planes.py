"""A plane, two agents, a producer and a consumer, each on a host of its own, while cables between them are cut.

Judged by the logs of producer and consumer alone: nothing lost, trained twice or damaged.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import DataPlaneError
from penstock.plane.client import PlaneClient
from penstock.records import KVBatchMeta
from penstock.testing.checker import Fault, Report, check, read_log
from penstock.testing.crew import Crew
from penstock.testing.network import Network, unavailable
from tests.crews import PRELOAD
from tests.faults.actors import FIELDS, FIRED, PARTITION, TASK, consume, produce, row_of
from tests.leaks import wait_for
from tests.network.site import PLANE, Site

WHY_NOT = unavailable()
pytestmark = [
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
    pytest.mark.timeout(280),
]

get_temp_dir()  # before the session moves TMPDIR: multiprocessing keeps this folder until the interpreter ends

GROUPS = 6
LIMIT_S = 180.0


@dataclass(frozen=True)
class Cut:
    """Cut the line between two hosts for so long."""

    a: str
    b: str
    for_s: float = 3.0
    one_way: bool = False

    def __str__(self) -> str:
        return f"{self.a}{'->' if self.one_way else '<->'}{self.b}"

    def __call__(self, site: Site) -> None:
        site.network.partition(self.a, self.b, one_way=self.one_way)
        time.sleep(self.for_s)
        site.network.heal(self.a, self.b)


@dataclass(frozen=True)
class Flap:
    """Cut and mend it again and again."""

    a: str
    b: str

    def __str__(self) -> str:
        return f"{self.a}~{self.b}"

    def __call__(self, site: Site) -> None:
        with site.network.flapping(self.a, self.b, down_s=0.3, up_s=0.3):
            time.sleep(3.0)


Deed = Callable[[Site], None]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Network(tmp_path) as network, Site(network) as made:
        yield made


def play(site: Site, folder: Path, deeds: Sequence[Deed], **options: object) -> Report:
    """Produce on host a and consume on host b while ``deeds`` are done, and judge it."""
    faults: list[Fault] = []
    with Crew([], folder, limit_s=LIMIT_S, preload=[*PRELOAD, "tests.network.site"]) as crew:
        crew.start("alice", produce, str(folder), "alice", GROUPS, site.join("a", **options))
        crew.start("carol", consume, str(folder), "carol", ["alice"], site.join("b", **options))
        over = threading.Event()
        chaos = threading.Thread(target=_do, args=(site, folder, deeds, faults, over))
        chaos.start()
        try:
            crew.play()
        finally:
            over.set()
            chaos.join()
    logs = [entry for path in folder.glob("log-*") for entry in read_log(path)]
    return check([*logs, *faults])


def _do(site: Site, folder: Path, deeds: Sequence[Deed], faults: list[Fault], over: threading.Event) -> None:
    """Do one deed after the other, from the first trained row on, unless the play is over."""
    wait_for(lambda: over.is_set() or any(path.stat().st_size for path in folder.glob("log-carol-*")), LIMIT_S)
    for deed in deeds if not over.is_set() else []:
        before = site.network.swallowed
        deed(site)
        if site.network.swallowed > before:
            faults.append(Fault(str(deed), 0))
        time.sleep(0.5)
    (folder / FIRED).touch()


def test_nothing_is_cut(site: Site, tmp_path: Path) -> None:
    """Rows put on one host are trained on another, and all ends in good order."""
    report = play(site, tmp_path, [])
    assert report.ok, report.verdict()
    assert report.trained >= GROUPS
    assert site.ended() == {"a": 0, "b": 0, "plane": 0}


def test_every_line_is_cut_once(site: Site, tmp_path: Path) -> None:
    """Each pair of hosts, fully; and one way each."""
    cuts: list[Deed] = [
        Cut("a", "b"),
        *(Cut(name, PLANE, 1.5) for name in ("a", "b")),
        *(Cut(a, b, 1.5, one_way=True) for a, b in (("b", "a"), ("a", "b"), (PLANE, "a"), ("b", PLANE))),
    ]
    report = play(site, tmp_path, cuts)
    assert report.ok, report.verdict()
    assert len(report.faults) == len(cuts), report.verdict()


@dataclass(frozen=True)
class Kill:
    """kill -9 of a plane or an agent, while the line that it needs most is cut; then it is started again."""

    who: str
    cut: Cut

    def __str__(self) -> str:
        return f"kill {self.who} during {self.cut}"

    def __call__(self, site: Site) -> None:
        served = site.plane if self.who == PLANE else site.agents[self.who]
        site.network.partition(self.cut.a, self.cut.b, one_way=self.cut.one_way)
        served.kill()
        time.sleep(self.cut.for_s)
        site.network.heal(self.cut.a, self.cut.b)
        served.start()


@pytest.mark.slow
def test_servers_are_killed_while_lines_are_cut(site: Site, tmp_path: Path) -> None:
    """An agent and the plane die while nobody can reach them, and come back with all that was acknowledged."""
    deeds: list[Deed] = [
        Kill("a", Cut("a", "b", 1.0)),
        Kill(PLANE, Cut("a", PLANE, 1.0)),
        Kill("b", Cut("b", PLANE, 1.0)),
    ]
    report = play(site, tmp_path, deeds)
    assert report.ok, report.verdict()
    assert len(report.faults) == len(deeds), report.verdict()


@pytest.mark.slow
def test_with_two_copies_lines_are_cut_too(site: Site, tmp_path: Path) -> None:
    """Each put is acknowledged when two hosts have it, and agents pull from each other over lines that are cut."""
    cuts: list[Deed] = [Cut("a", "b", 2.0), Cut("b", "a", 2.0, one_way=True), Cut("a", PLANE, 2.0)]
    report = play(site, tmp_path, cuts, replicas=2)
    assert report.ok, report.verdict()
    assert len(report.faults) == len(cuts), report.verdict()


# -- rows that are really gone ----------------------------------------------------------------------------------------


@contextmanager
def client_on(site: Site, name: str, **options: object) -> Iterator[PlaneClient]:
    """A client in this process, with its threads on host ``name``."""
    where = Path.cwd()
    try:
        with site.network.host(name).entered(), site.join(name, **options)(where) as client:
            yield client
    finally:
        os.chdir(where)


def put(client: PlaneClient, keys: list[str]) -> None:
    columns = dict(zip(FIELDS, map(list, zip(*map(row_of, keys), strict=True)), strict=True))
    client.put_samples(keys, PARTITION, columns, [{"group_id": keys[0], "committed": True} for _ in keys])


@pytest.mark.skipif(unavailable(threads=True) is not None, reason=str(unavailable(threads=True)))
@pytest.mark.parametrize(
    ("replicas", "silent"),
    [*(pytest.param(1, silent, marks=pytest.mark.slow) for silent in (False, True)), (2, False)],
)
def test_a_host_that_is_gone_for_good(tmp_path: Path, replicas: int, silent: bool) -> None:
    """Rows that lay there alone are lost, by name, and the error says so and names the host; second copies are read."""
    keys = ["k1_g0", "k1_g1", "k1_g2", "k1_g3"]
    with Network(tmp_path) as network, Site(network, config={"host_grace_s": 2.0}) as site:
        with client_on(site, "a", replicas=replicas) as alice:
            put(alice, keys)
        if silent:
            network.unplug("a")
        site.agents["a"].kill()
        with client_on(site, "b", timeout_s=30.0) as carol:
            meta = KVBatchMeta(partition_id=PARTITION, task_name=TASK, sample_ids=keys, fields=FIELDS)
            if replicas == 2:
                columns: Any = carol.get_data(meta)
                assert len(columns["input_ids"].unbind()) == len(keys)
                return
            began = time.monotonic()
            with pytest.raises(DataPlaneError) as gone:
                carol.get_data(meta)
            assert time.monotonic() - began < 30.0 + 10.0
            assert "lost: host a" in str(gone.value)
            assert all(key in str(gone.value) for key in keys)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_lines_are_cut_at_random(site: Site, tmp_path: Path, seed: int) -> None:
    """Full and one-way cuts and flapping lines, drawn from a seed."""
    made = random.Random(seed)
    pairs = [("a", "b"), ("b", "a"), ("a", "plane"), ("plane", "a"), ("b", "plane"), ("plane", "b")]
    deeds = [_drawn(made, *made.choice(pairs)) for _ in range(8)]
    report = play(site, tmp_path, deeds)
    assert report.ok, report.verdict()
    assert report.faults


def _drawn(made: random.Random, a: str, b: str) -> Deed:
    if made.random() < 0.3:
        return Flap(a, b)
    return Cut(a, b, made.uniform(0.1, 6.0), one_way=made.random() < 0.5)
