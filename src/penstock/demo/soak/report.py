"""A soak's result for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from penstock.demo.finale import prompts_line
from penstock.demo.soak.options import SoakResult
from penstock.demo.soak.places import ROLES
from penstock.demo.soak.verdict import Times
from penstock.ops.tables import table

__all__ = ["tables"]

SHOWN = 12  # of the faults that never fired; the JSON has them all


def tables(result: SoakResult) -> Iterator[RenderableType]:
    """Yield what is printed."""
    yield _faults(result)
    yield _books(result)
    if result.pairs:
        yield _pairs(result)
    if result.never_fired:
        yield _never_fired(result)
    yield _verdict(result)


def _faults(result: SoakResult) -> Table:
    rows = [
        (
            role,
            *(result.faults[kind].get(role, 0) for kind in result.faults),
            _span(result.recovery_s, role),
            _span(result.after_stop_s, role),
        )
        for role in ROLES
    ]
    title = f"{result.fired} faults in {result.strikes} strikes, {result.places_struck} of {result.places} places"
    heads = ("role", *result.faults, "recovery p50, p95, max", "after a stop")
    return table(title, heads, rows)


def _span(times: Mapping[str, Times], role: str) -> str:
    found = times.get(role)
    return "" if found is None else _seconds(found)


def _seconds(times: Times) -> str:
    return f"{times.p50:.2f}, {times.p95:.2f}, {times.max:.2f} s"


def _books(result: SoakResult) -> Table:
    named = {name: getattr(result, name) for name in ("lost", "duplicated", "corrupted", "phantom", "stale")}
    evicted = ", ".join(f"{count} {reason}" for reason, count in sorted(result.evicted.items())) or "0"
    rows = [
        (
            "steps, reward",
            f"{result.steps}, {result.first_reward:.3f} -> {result.reward:.3f} in {result.seconds:.0f} s",
        ),
        ("rows", f"{result.put} put, {result.acknowledged} acknowledged, {result.trained} trained"),
        ("evicted", evicted),
        ("put without an answer, and trained", result.recovered),
        *((name, len(rows)) for name, rows in named.items()),
        ("residue of the plane's books", result.residue),
        ("plane back to work on it", _resumed(result.resume_s)),
        ("the same, with everybody else there", _resumed(result.resume_alone_s)),
        *((f"to get over a strike at {name}", _seconds(found)) for name, found in _strikes(result)),
        ("stuck, died by themselves, left behind", f"{len(result.stuck)}, {len(result.died)}, {len(result.left)}"),
    ]
    return table("the books", ("", ""), rows)


def _resumed(times: Times | None) -> str:
    return "it was not away" if times is None else f"{_seconds(times)} ({times.count} times)"


def _strikes(result: SoakResult) -> list[tuple[str, Times]]:
    names = {"single": "one", "pair": "two", "all": "all"}
    return [(names[shape], times) for shape, times in result.strike_s.items()]


def _pairs(result: SoakResult) -> Table:
    rows = [
        (pair, found.strikes, found.fired, "" if found.slowest_s is None else f"{found.slowest_s:.2f} s")
        for pair, found in result.pairs.items()
    ]
    return table("two at one moment", ("pair", "strikes", "faults", "slowest to get over"), rows)


def _never_fired(result: SoakResult) -> Text:
    shown = result.never_fired[:SHOWN]
    more = len(result.never_fired) - len(shown)
    rest = [f"and {more} more"] if more else []
    return Text("\n  ".join([f"{len(result.never_fired)} armed and never fired:", *shown, *rest]))


def _verdict(result: SoakResult) -> Text:
    lines = [prompts_line(result.prompts)]
    if result.interrupted:
        lines.append(Text("interrupted: what was done until then is judged"))
    if result.ok:
        lines.append(Text("PASS: nothing lost, duplicated, corrupted, stale or stuck; nothing left", style="green"))
    else:
        lines += [Text(f"FAIL: {finding}", style="bold red") for finding in result.findings]
        lines.append(Text(f"replay: {result.replay}; logs: {result.folder}"))
    return Text("\n").join(lines)
