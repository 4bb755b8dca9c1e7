"""A plane, two agents, a producer and a consumer, each on a host of its own, while cables between them are cut.

Judged by the logs of producer and consumer alone: nothing lost, trained twice or damaged.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.util import get_temp_dir
from pathlib import Path

import pytest

from penstock.testing.checker import Fault, Report, check, read_log
from penstock.testing.crew import Crew
from penstock.testing.network import Network, unavailable
from tests.crews import PRELOAD
from tests.faults.actors import FIRED, consume, produce
from tests.leaks import wait_for
from tests.network.site import Site

WHY_NOT = unavailable()
pytestmark = [
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
    pytest.mark.timeout(200),
]

get_temp_dir()  # before the session moves TMPDIR: multiprocessing keeps this folder until the interpreter ends

GROUPS = 6
LIMIT_S = 90.0


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
        chaos = threading.Thread(target=_do, args=(site, folder, deeds, faults))
        chaos.start()
        try:
            crew.play()
        finally:
            (folder / FIRED).touch()
            chaos.join()
    logs = [entry for path in folder.glob("log-*") for entry in read_log(path)]
    return check([*logs, *faults])


def _do(site: Site, folder: Path, deeds: Sequence[Deed], faults: list[Fault]) -> None:
    wait_for(lambda: any(path.stat().st_size for path in folder.glob("log-carol-*")))
    for deed in deeds:
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
        *(Cut(a, b) for a, b in (("a", "b"), ("a", "plane"), ("b", "plane"))),
        *(Cut(a, b, one_way=True) for a, b in (("a", "b"), ("b", "a"), ("plane", "a"), ("b", "plane"))),
    ]
    report = play(site, tmp_path, cuts)
    assert report.ok, report.verdict()
    assert len(report.faults) == len(cuts), report.verdict()


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
