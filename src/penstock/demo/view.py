"""What the user sees while the run goes on: a live table on a terminal, a line now and then elsewhere.

Invariants: it goes to stderr, so that stdout holds the result alone; it only reads; closing it twice is harmless.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from penstock.demo.spec import REWARD_WINDOW, window_mean

__all__ = ["LifeLine", "LiveView", "PlainView", "Snapshot", "View", "view_on"]

BARS = " ▁▂▃▄▅▆▇█"
PLAIN_PERIOD_S = 5.0


@dataclass(frozen=True)
class LifeLine:
    """One process, as the view shows it."""

    slot: str
    pid: int
    lives: int
    state: str


@dataclass(frozen=True)
class Snapshot:
    """The run at one moment.

    Attributes:
        rewards: mean per step, all of them.
        depth: groups in the plane.
        prompts: open ones, wherever they are.
        version: of the policy.
        faults: fired, by kind.
        notes: what went otherwise than straight to training, and how often.
    """

    seconds: float
    rewards: list[float]
    rows_trained: int
    depth: int
    prompts: int
    version: int
    faults: dict[str, int]
    notes: dict[str, int] = field(default_factory=dict)
    lives: list[LifeLine] = field(default_factory=list)

    @property
    def reward(self) -> float:
        return window_mean(self.rewards[-REWARD_WINDOW:])

    @property
    def rows_per_s(self) -> float:
        return self.rows_trained / self.seconds if self.seconds > 0 else 0.0


class View(Protocol):
    """Shows snapshots."""

    def show(self, now: Snapshot) -> None: ...

    def close(self) -> None: ...


def view_on(console: Console) -> View:
    """Return the view that suits ``console``."""
    return LiveView(console) if console.is_terminal else PlainView(console)


class PlainView:
    """A line every few seconds, for logs and pipes."""

    def __init__(self, console: Console, period_s: float = PLAIN_PERIOD_S) -> None:
        self._console = console
        self._period_s = period_s
        self._next_s = 0.0

    def show(self, now: Snapshot) -> None:
        if now.seconds < self._next_s:
            return
        self._next_s = now.seconds + self._period_s
        self._console.print(one_line(now), highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Nothing to undo."""


class LiveView:
    """A table that is drawn over itself."""

    def __init__(self, console: Console, refresh_per_s: float = 5.0) -> None:
        self._period_s = 1 / refresh_per_s
        self._drawn_at = 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def show(self, now: Snapshot) -> None:
        if time.monotonic() - self._drawn_at >= self._period_s:
            self._drawn_at = time.monotonic()
            self._live.update(panel(now), refresh=True)

    def close(self) -> None:
        self._live.stop()


def one_line(now: Snapshot) -> str:
    """Return ``now`` in one line."""
    faults = ", ".join(f"{count} {kind}" for kind, count in now.faults.items() if count) or "none"
    return (
        f"{now.seconds:5.1f} s  step {len(now.rewards):4d}  reward {now.reward:.3f}  {now.rows_per_s:5.0f} rows/s  "
        f"queue {now.depth:2d} groups  faults {faults}"
    )


def sparkline(rewards: list[float], width: int = 60) -> str:
    """Return the rewards' course in ``width`` characters, each the mean of its share of the steps."""
    share = max(1, -(-len(rewards) // width))
    means = [window_mean(rewards[i : i + share]) for i in range(0, len(rewards), share)]
    return "".join(BARS[round(min(max(mean, 0.0), 1.0) * (len(BARS) - 1))] for mean in means)


def panel(now: Snapshot) -> Panel:
    """Return ``now`` as a panel."""
    return Panel(
        Group(_numbers(now), Text(sparkline(now.rewards), style="green"), _processes(now)),
        title=f"penstock demo: GRPO, {now.seconds:.0f} s",
    )


def _numbers(now: Snapshot) -> Table:
    table = Table.grid(padding=(0, 2))
    faults = ", ".join(f"{kind} {count}" for kind, count in now.faults.items())
    notes = ", ".join(f"{name} {count}" for name, count in sorted(now.notes.items()) if count) or "none"
    table.add_row("reward", f"[bold green]{now.reward:.3f}", "step, version", f"{len(now.rewards)}, v{now.version}")
    table.add_row("throughput", f"{now.rows_per_s:.0f} rows/s", "rows trained", str(now.rows_trained))
    table.add_row("queue", f"{now.depth} groups", "open prompts", str(now.prompts))
    table.add_row("faults fired", f"[red]{faults}", "on the way", notes)
    return table


def _processes(now: Snapshot) -> Table:
    table = Table("process", "pid", "life", "state", box=None, header_style="dim")
    for line in now.lives:
        table.add_row(line.slot, str(line.pid), str(line.lives), line.state)
    return table
