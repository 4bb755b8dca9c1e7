"""Runs a soak from its first process to its verdict.

Invariants: whatever happens, no process, thread, segment or socket of the run is left; one Ctrl-C ends the faults and
the run is judged as it is, a second ends it at once; a soak with a finding keeps its logs and says where.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import msgspec

from penstock.demo.interrupt import Interrupt, signals_as_flag
from penstock.demo.job import PLANE, Job, Outcome
from penstock.demo.launcher import RunDirectory, require_packages, run_directory
from penstock.demo.progress import EventTail
from penstock.demo.soak import sums
from penstock.demo.soak.opponent import Limits, Opponent
from penstock.demo.soak.options import SoakOptions, SoakResult
from penstock.demo.soak.places import Place, select
from penstock.demo.soak.remains import Census, plane_remains
from penstock.demo.soak.schedule import Strike, pairs, schedule
from penstock.demo.soak.verdict import Times, alone, held_findings, resumptions, step_findings
from penstock.demo.soak.view import SoakView
from penstock.demo.spec import DemoOptions
from penstock.errors import DataPlaneError
from penstock.testing.checker import read_log

__all__ = ["run"]

OPTIONS = (  # of the plane
    "segment_bytes=65536",  # small, so that checkpoints and new segments come often enough to be struck
    *("heartbeat_s=0.5", "dead_after_s=2.5"),  # so that who is stopped for long has lost its session when it wakes
)
FAULT_S = 30.0  # the most that one fault may take, on average
END_S = 120.0  # to begin, and to get over the last fault


def run(options: SoakOptions, say: Callable[[str], None]) -> SoakResult:
    """Run a soak. ``say`` is told how it goes, a line now and then.

    Raises:
        KeyboardInterrupt: a second signal came, or one came before there was anything to judge.
        DataPlaneError: the plane could not be started, or could not be asked for its books.
        MissingExtra: a package of the extra ``demo`` is not installed.
        BadArgument: ``out`` is not empty, or ``only`` names no place.
    """
    require_packages()
    places = select(options.only)
    with signals_as_flag() as interrupt, run_directory(options.out) as directory:
        soak = _Soak(options, places, directory, interrupt)
        try:
            result = soak.run(say)
        except KeyboardInterrupt:
            raise  # nobody wants its logs
        except DataPlaneError as error:
            error.message += f"; replay: {options.replay}; logs: {directory.keep()}"
            raise
        except BaseException as error:  # a bug of ours
            error.add_note(f"replay: {options.replay}; logs: {directory.keep()}")
            raise
        folder = (
            str(directory.files.root if options.out else directory.keep()) if options.out or not result.ok else None
        )
        result = msgspec.structs.replace(result, folder=folder)
        if folder is not None:
            (directory.files.root / "soak.json").write_bytes(msgspec.json.encode(result))
        return result


def strikes_of(options: SoakOptions, places: tuple[Place, ...]) -> Iterator[Strike]:
    """Return what is going to happen."""
    return iter(pairs(options.seed)) if options.pairs else schedule(options.seed, places)


class _Soak:
    """One soak."""

    def __init__(
        self, options: SoakOptions, places: tuple[Place, ...], directory: RunDirectory, interrupt: Interrupt
    ) -> None:
        self._options, self._places, self._interrupt = options, places, interrupt
        self._files = directory.files
        self._census = Census(self._files)
        self.opponent = Opponent(strikes_of(options, places), Limits(options.faults, options.limit_s))
        strike_s = options.limit_s or (options.faults or 100) * FAULT_S
        demo = DemoOptions(chaos=True, seed=options.seed, time_limit_s=strike_s + END_S)
        self._job = Job(demo, self._files, interrupt, self.opponent, OPTIONS)
        self._interrupted = False

    def run(self, say: Callable[[str], None]) -> SoakResult:
        """Run it to its end, and judge it."""
        job = self._job
        try:
            job.begin()
            why = self._supervise(SoakView(self.opponent, self._files, say))
            say(f"{len(self.opponent.fired)} faults have fired in {len(self.opponent.struck)} strikes; judging")
            self.opponent.close(job)
            outcome = job.conclude(why)
            left = plane_remains(self._files)
        finally:
            self.opponent.close(job)
            job.close()
            self._write_strikes()
        return self._result(outcome, [*left, *self._census.remains()])

    def _supervise(self, view: SoakView) -> str:
        try:
            return self._job.supervise(view)
        except KeyboardInterrupt:
            if not self.opponent.fired:
                raise
        self._interrupted = True
        self._interrupt.heed()
        self.opponent.rest(self._job)
        return self._job.supervise(view)

    def _write_strikes(self) -> None:
        """Keep what was struck when, for whoever reads the logs."""
        offset = time.time() - time.monotonic()
        with (self._files.root / "strikes.jsonl").open("w") as file:
            for struck in self.opponent.struck:
                fired = [{"at": one.at + offset, "pid": one.pid, "fault": str(one.sentence)} for one in struck.fired]
                line = {
                    "strike": str(struck.strike),
                    "armed_at": struck.began_at + offset,
                    "over_at": struck.over_at and struck.over_at + offset,
                    "fired": fired,
                    "never_fired": struck.shortfalls,
                }
                file.write(json.dumps(line) + "\n")

    # -- the verdict --------------------------------------------------------------------------------------------------

    def _findings(self, outcome: Outcome, left: list[str]) -> list[str]:
        job, opponent, wanted = self._job, self.opponent, self._options.faults
        entries = [entry for path in sorted(self._files.journals.iterdir()) for entry in read_log(path)]
        spec = job.spec
        found = [outcome.result.why] if outcome.result.why else []
        found += step_findings(entries, outcome.result.steps, spec.groups_per_step * spec.group_size)
        found += [*held_findings(outcome.audit), *opponent.stuck]
        found += [f"{what}, {times} times, and nobody had struck it" for what, times in job.deaths.items()]
        found += [f"{slot} was struck and has done nothing since" for slot in sorted(set(job.faults.unrecovered()))]
        found += [f"left behind: {what}" for what in left]
        fired = len(opponent.fired)
        if not fired or (wanted is not None and fired < wanted and not self._interrupted):
            found.append(f"only {fired} of {wanted or 1} faults fired")
        return found

    def _others_away(self) -> list[tuple[float, float]]:
        """When somebody else than the plane was struck and had not got on, in seconds since the epoch."""
        offset = time.time() - time.monotonic()
        return [(since + offset, until + offset) for slot, since, until in self._job.faults.outages() if slot != PLANE]

    def _result(self, outcome: Outcome, left: list[str]) -> SoakResult:
        findings = self._findings(outcome, left)
        opponent, job, report, result = self.opponent, self._job, outcome.report, outcome.result
        resumed = resumptions(EventTail(self._files.events).read())
        return SoakResult(
            ok=not findings,
            findings=findings,
            interrupted=self._interrupted,
            seed=self._options.seed,
            replay=self._options.replay,
            folder=None,
            seconds=result.seconds,
            strikes=len(opponent.struck),
            fired=len(opponent.fired),
            faults=sums.by_kind(opponent.fired),
            by_place=sums.by_place(opponent.fired),
            never_fired=sums.never_fired(opponent.struck),
            places=len(self._places),
            places_struck=sums.places_struck(opponent.fired, self._places),
            steps=result.steps,
            first_reward=result.first_reward,
            reward=result.final_reward,
            put=report.puts,
            acknowledged=report.acknowledged,
            trained=report.trained,
            evicted=report.evicted,
            recovered=report.recovered,
            lost=report.lost,
            duplicated=report.duplicated,
            corrupted=report.corrupted,
            phantom=report.phantom,
            stale=report.stale,
            residue=outcome.audit.residue,
            prompts=result.prompts,
            recovery_s=sums.times_by_role(job.faults.seconds()),
            after_stop_s=sums.times_by_role(job.faults.seconds(of_stops=True)),
            resume_s=Times.of([one.seconds for one in resumed]),
            resume_alone_s=Times.of([one.seconds for one in alone(resumed, self._others_away())]),
            strike_s=sums.by_shape(opponent.struck),
            pairs=sums.by_pair(opponent.struck),
            stuck=opponent.stuck,
            died=dict(job.deaths),
            left=left,
        )
