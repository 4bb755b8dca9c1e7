"""``penstock demo``, ``sim`` and ``explore``: run what others wrote, and turn what it found into an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.table import Table
from rich.text import Text

from penstock.ops.report import ExitCode, Report
from penstock.ops.tables import table

if TYPE_CHECKING:
    from penstock.demo.spec import DemoOptions
    from penstock.testing.explore.ledger import ExploreReport
    from penstock.testing.sim import Kind, Outcome, SimReport

__all__ = ["run_demo", "run_explore_handshake", "run_explore_ledger", "run_explore_slot", "run_sim"]

_SHOWN = 60  # characters of how a planted bug showed itself; the JSON has it whole


def run_demo(report: Report, options: DemoOptions) -> None:
    """Run the demo; it shows itself, on stderr when a JSON object was asked for."""
    from penstock.demo.launcher import run

    result = run(options)
    if report.as_json:
        report.answer(result)
    if not result.ok:
        raise typer.Exit(ExitCode.FINDING)


def run_sim(report: Report, *, kind: Kind, seed: int, worlds: int) -> None:
    """Run worlds; name the seeds of those that broke a promise."""
    from penstock.testing import sim

    report.progress(f"running {worlds} worlds of kind {kind} from seed {seed}")
    found = sim.run(worlds, seed) if kind == "plane" else sim.run_controller(worlds, seed)
    told = (_failure(kind, outcome, with_trace=worlds == 1) for outcome in found.failures)
    report.answer(found, _sim_table(found), *told)
    if not found.ok:
        raise typer.Exit(ExitCode.FINDING)


def _sim_table(found: SimReport) -> Table:
    rows = [
        ("worlds", f"{found.worlds} of kind {found.kind} (seeds {found.seed} to {found.seed + found.worlds - 1})"),
        ("failed", found.failed),
        ("operations", found.operations),
        ("rows acknowledged", found.acknowledged),
        ("rows trained", found.trained),
        ("rows evicted", found.evicted),
        *((name.replace("_", " "), count) for name, count in found.run.items()),
        ("faults fired", ", ".join(f"{count} {kind}" for kind, count in sorted(found.faults.items())) or "none"),
        ("worlds a second", f"{found.worlds_per_s:.0f}"),
    ]
    return table("simulation: " + ("every promise was kept" if found.ok else "BROKEN"), ("", ""), rows)


def _failure(kind: Kind, outcome: Outcome, *, with_trace: bool) -> Text:
    replay = f"penstock sim --kind {kind} --seed {outcome.seed} --worlds 1"
    told = outcome.trace if with_trace else [f"its trace: {replay}"]
    return Text("\n  ".join([f"seed {outcome.seed}:", *outcome.violations, *told]))


def run_explore_ledger(report: Report, budget_s: float) -> None:
    """Explore the real ledger, then hunt the bugs that were planted to prove that exploring finds them."""
    from penstock.testing.explore.ledger import run

    report.progress(f"exploring, for {budget_s:g} s of processor time at most")
    _answer_exploration(report, "the ledger", run(budget_s=budget_s))


def run_explore_slot(report: Report, budget_s: float) -> None:
    """Hunt the bugs that were planted in the slot machine, then explore the real one."""
    from penstock.testing.explore.slot import run

    report.progress(f"exploring, for {budget_s:g} s of processor time at most")
    _answer_exploration(report, "the slot machine", run(budget_s=budget_s))


def run_explore_handshake(report: Report, budget_s: float) -> None:
    """Hunt the bugs that were planted in the handshake, then explore the real one; show the shortest path to each."""
    from penstock.testing.explore.handshake import run

    report.progress(f"exploring, for {budget_s:g} s of processor time at most")
    found = run(budget_s=budget_s)
    hunted = (_path(f"planted: {name}: {f.what}", f.path) for name, f in found.planted.items() if f is not None)
    _answer_exploration(report, "the handshake", found, *hunted)


def _answer_exploration(report: Report, what: str, found: ExploreReport, *more: Text) -> None:
    report.answer(found, _explore_table(what, found), *more, *(_path(f.what, f.path) for f in found.findings))
    if not found.ok:
        raise typer.Exit(ExitCode.FINDING)


def _explore_table(what: str, found: ExploreReport) -> Table:
    hunted = [
        (f"planted: {name}", "NOT found" if f is None else _short(f.what)) for name, f in sorted(found.planted.items())
    ]
    rows = [
        ("states", found.states),
        ("transitions", found.transitions),
        ("explored to their depth", "all" if found.complete else "not all: the time was up"),
        ("violations", found.violations),
        ("planted bugs found", f"{found.planted_found} of {found.planted_total}"),
        ("seconds", f"{found.elapsed_s:.1f}"),
        *hunted,
    ]
    return table(f"exploration of {what}", ("", ""), rows)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _path(what: str, path: list[str]) -> Text:
    return Text("\n  ".join([what, *path]))
