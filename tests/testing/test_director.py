"""Faults on processes that somebody else started: they fire at their point and are seen to, or it is said why not."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from penstock.errors import BadArgument
from penstock.testing import director as director_module
from penstock.testing.director import Director
from penstock.testing.faults import Sentence, delay, kill, stop, terminate
from tests.descriptors import open_descriptors

SOON_S = 30.0
# Reaches a point for each line that it is told, and says so before and after.
WALK = """
import sys
from penstock.points import reached
from penstock.testing.injection import take_part
take_part(int(sys.argv[1]))
print("ready", flush=True)
for line in sys.stdin:
    reached(line.strip())
    print("passed", line.strip(), flush=True)
"""
POLITE = """import atexit, signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
atexit.register(reached, "way_out")
"""
DEAF = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"


class Stage:
    """A director, and walkers by name."""

    def __init__(self) -> None:
        self.director = Director()
        self.walkers: dict[str, subprocess.Popen[str]] = {}

    def walker(self, *names: str, first: str = "") -> subprocess.Popen[str]:
        seat = self.director.enrol(*names)
        program = WALK.replace("print(", f"{first}print(", 1)
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(seat.fd)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[seat.fd],
        )
        seat.given_to(process.pid)
        assert said(process) == "ready"
        self.walkers[names[0]] = process
        return process

    def until(self, happened: Callable[[], object]) -> None:
        end = time.monotonic() + SOON_S
        while not happened():
            assert time.monotonic() < end
            self.director.turn(0.05)

    def until_settled(self) -> None:
        """Until every fault that was armed has come to something."""
        self.until(lambda: not self.director.pending and not self.director.busy)


def said(walker: subprocess.Popen[str]) -> str:
    assert walker.stdout is not None
    return walker.stdout.readline().strip()


def go_to(walker: subprocess.Popen[str], *places: str) -> None:
    assert walker.stdin is not None
    walker.stdin.write("".join(f"{place}\n" for place in places))
    walker.stdin.flush()


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.director.close()
    for walker in made.walkers.values():
        walker.kill()
        walker.communicate()


def test_kill_strikes_at_the_nth_time_and_is_seen(stage: Stage) -> None:
    """The process is gone before it passes its point, by SIGKILL, and the fault says whom it hit."""
    stage.director.arm(kill("walker", at="client.copied", nth=2))
    walker = stage.walker("walker")
    go_to(walker, "client.copied", "client.put", "client.copied", "client.put")
    stage.until_settled()
    assert walker.wait(SOON_S) == -signal.SIGKILL
    assert [said(walker) for _ in range(3)] == ["passed client.copied", "passed client.put", ""]
    assert [(f.pid, f.sentence.point) for f in stage.director.fired] == [(walker.pid, "client.copied")]


def test_stop_is_seen_and_ends(stage: Stage) -> None:
    """The process is stopped for as long as the sentence says, then goes on where it was."""
    stage.director.arm(stop("walker", at="trainer.saved", for_s=0.3))
    walker = stage.walker("walker")
    go_to(walker, "trainer.saved")
    stage.until(lambda: stage.director.fired)
    assert stage.director.stopped == [walker.pid]
    assert Path(f"/proc/{walker.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    begun = time.monotonic()
    stage.until_settled()
    assert time.monotonic() - begun > 0.2
    assert said(walker) == "passed trainer.saved"


def test_who_is_stopped_twice_stays_so_until_both_are_over(stage: Stage) -> None:
    """The shorter stop does not end the longer."""
    stage.director.arm(stop("walker", at="here", for_s=0.5), stop("walker", at="here", for_s=0.1))
    walker = stage.walker("walker")
    go_to(walker, "here")
    stage.until(lambda: len(stage.director.fired) == 2)
    begun = time.monotonic()
    stage.until(lambda: not stage.director.stopped)
    assert time.monotonic() - begun > 0.3


def test_delay_holds_who_is_there(stage: Stage) -> None:
    """No signal is sent: the process sleeps at its point and passes it later."""
    stage.director.arm(delay("walker", at="here", for_s=0.3))
    walker = stage.walker("walker")
    begun = time.monotonic()
    go_to(walker, "here")
    stage.until_settled()
    assert said(walker) == "passed here"
    assert time.monotonic() - begun >= 0.3
    assert [f.sentence.kind for f in stage.director.fired] == ["delay"]


def test_a_running_process_is_armed(stage: Stage) -> None:
    """A sentence that comes while the process runs holds from its next point on; what went before does not count."""
    walker = stage.walker("walker")
    go_to(walker, "here", "here")
    assert [said(walker), said(walker)] == ["passed here"] * 2
    stage.director.arm(kill("walker", at="here", nth=2))
    go_to(walker, "here", "here", "here")
    stage.until_settled()
    assert (said(walker), said(walker), walker.wait(SOON_S)) == ("passed here", "", -signal.SIGKILL)


def test_what_is_disarmed_does_not_happen(stage: Stage) -> None:
    """A running process is told so, and is not held any more."""
    sentence = kill("walker", at="here")
    stage.director.arm(sentence)
    walker = stage.walker("walker")
    stage.director.disarm(sentence)
    go_to(walker, "here")
    assert said(walker) == "passed here"
    assert stage.director.pending == []


def test_the_same_sentence_is_not_armed_twice(stage: Stage) -> None:
    """Two that are equal would be one fault; none of the call's are armed then."""
    stage.director.arm(kill("walker", at="here"))
    with pytest.raises(BadArgument, match="armed already"):
        stage.director.arm(kill("walker", at="there"), kill("walker", at="here"))
    with pytest.raises(BadArgument, match="armed already"):
        stage.director.arm(kill("walker", at="there"), kill("walker", at="there"))
    assert stage.director.pending == [kill("walker", at="here")]


def test_what_was_fired_can_be_armed_again(stage: Stage) -> None:
    """The next life of a role is hit by the same sentence."""
    for life in range(2):
        stage.director.arm(kill("walker", at="here"))
        walker = stage.walker("walker")
        go_to(walker, "here")
        stage.until_settled()
        assert walker.wait(SOON_S) == -signal.SIGKILL
        assert len(stage.director.fired) == life + 1


@pytest.mark.parametrize("ends", [True, False])
def test_fault_whose_moment_never_came_says_how_far_it_got(stage: Stage, ends: bool) -> None:
    """A process that exits before its point leaves the fault pending; the count and the exit are told."""
    stage.director.arm(kill("walker", at="here", nth=3), kill("nobody", at="there"))
    walker = stage.walker("walker")
    go_to(walker, "here")
    stage.until(lambda: stage.director._armed[0].count)
    assert said(walker) == "passed here"
    if ends:
        walker.communicate(timeout=SOON_S)
        stage.until(lambda: "has ended" in stage.director.shortfalls()[0])
    end = "; every 'walker' has ended" if ends else ""
    assert stage.director.shortfalls() == [
        f"kill walker at walker:here #3: its point was reached once{end}",
        "kill nobody at nobody:there #1: its point was reached 0 times; there was no 'nobody'",
    ]
    assert (stage.director.fired, stage.director.missed) == ([], [])


def test_another_can_be_hit(stage: Stage) -> None:
    """Who reached the point is held until the victim is gone, and then goes on."""
    stage.director.arm(kill("other", at="walker:here"))
    walker, other = stage.walker("walker"), stage.walker("other")
    go_to(walker, "here")
    stage.until_settled()
    assert (said(walker), other.wait(SOON_S)) == ("passed here", -signal.SIGKILL)


def test_of_several_of_a_kind_who_reached_the_point_is_hit(stage: Stage) -> None:
    """A process answers to several names; those of a kind count together."""
    stage.director.arm(kill("worker", at="here", nth=2))
    first, second = stage.walker("worker-0", "worker"), stage.walker("worker-1", "worker")
    go_to(second, "here")
    stage.until(lambda: stage.director._armed[0].count)
    assert said(second) == "passed here"
    go_to(first, "here")
    stage.until_settled()
    assert first.wait(SOON_S) == -signal.SIGKILL
    assert second.poll() is None


def test_a_process_can_change_its_name(stage: Stage) -> None:
    """A spare that becomes a worker is hit as a worker."""
    stage.director.arm(kill("worker", at="here"))
    seat = stage.director.enrol("spare")
    stage.director.rename(seat, "worker-0", "worker")
    assert seat._watched == {"here"}


def test_nobody_to_hit_is_a_miss(stage: Stage) -> None:
    """The moment came, and the victim was not there: nothing counts as fired, and it is said why."""
    stage.director.arm(kill("ghost", at="walker:here"))
    walker = stage.walker("walker")
    go_to(walker, "here")
    stage.until_settled()
    assert said(walker) == "passed here"
    assert [str(missed) for missed in stage.director.missed] == ["kill ghost at walker:here #1: nobody to kill"]
    assert stage.director.fired == []


def test_signal_without_effect_is_a_miss(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ignores SIGTERM was not terminated."""
    monkeypatch.setattr(director_module, "_EFFECT_S", 0.2)
    stage.director.arm(terminate("walker", at="here"))
    walker = stage.walker("walker", first=DEAF)
    go_to(walker, "here")
    stage.until_settled()
    assert (walker.poll(), stage.director.fired) == (None, [])
    assert "shows no effect" in stage.director.missed[0].why


def test_who_is_asked_to_end_passes_points_on_the_way_out(stage: Stage) -> None:
    """A process that was asked to end is heard meanwhile: a second fault hits it in its end."""
    stage.director.arm(terminate("walker", at="here"), kill("walker", at="way_out"))
    walker = stage.walker("walker", first=POLITE)
    go_to(walker, "here")
    stage.until_settled()
    assert walker.wait(SOON_S) == -signal.SIGKILL
    assert {f.sentence.kind for f in stage.director.fired} == {"kill", "terminate"}


def test_a_fault_may_strike_later(stage: Stage) -> None:
    """The process runs on from its point, and is hit wherever it is then."""
    stage.director.arm(kill("walker", at="here", later_s=0.1))
    walker = stage.walker("walker")
    go_to(walker, "here")
    stage.until(lambda: not stage.director.pending)
    assert said(walker) == "passed here"
    stage.until_settled()
    assert walker.wait(SOON_S) == -signal.SIGKILL


def test_close_leaves_nobody_stopped_or_held(stage: Stage) -> None:
    """A stop that is not over is, and who is held goes on; closing again changes nothing."""
    stage.director.arm(stop("walker", at="here", for_s=1000), delay("other", at="here", for_s=1000))
    walkers = [stage.walker("walker"), stage.walker("other")]
    for walker in walkers:
        go_to(walker, "here")
    stage.until(lambda: len(stage.director.fired) == 2)
    descriptors = open_descriptors()
    stage.director.close()
    stage.director.close()
    assert [said(walker) for walker in walkers] == ["passed here"] * 2
    assert open_descriptors() == descriptors - 4  # two lines, the stopped process, the selector


def test_many_processes_at_once(stage: Stage) -> None:
    """Sentences about different roles are told apart."""
    wanted: list[Sentence] = [kill(f"walker-{i}", at="here") for i in (0, 2)]
    stage.director.arm(*wanted)
    walkers = [stage.walker(f"walker-{i}", "walker") for i in range(4)]
    for walker in walkers:
        go_to(walker, "here")
    stage.until_settled()
    assert [walkers[i].wait(SOON_S) for i in (0, 2)] == [-signal.SIGKILL] * 2
    assert [said(walkers[i]) for i in (1, 3)] == ["passed here"] * 2
