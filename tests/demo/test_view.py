"""The view: everything that matters, on a terminal and in a log."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from penstock.demo.view import LifeLine, LiveView, PlainView, Snapshot, one_line, panel, sparkline, view_on


def snapshot(seconds: float = 12.0) -> Snapshot:
    return Snapshot(
        seconds=seconds,
        rewards=[0.1, 0.5, 0.9],
        rows_trained=192,
        depth=7,
        prompts=32,
        version=3,
        faults={"worker": 2, "trainer": 0, "controller": 3, "plane": 1},
        notes={"rows stale": 8, "prompts again": 0},
        lives=[LifeLine("worker-0", 4711, 3, "at work")],
    )


def test_a_line_says_how_it_stands() -> None:
    """Time, step, reward, throughput, queue and faults, on one line."""
    line = one_line(snapshot())
    for part in ("12.0 s", "step    3", "reward 0.500", "16 rows/s", "queue  7", "2 worker, 3 controller, 1 plane"):
        assert part in line
    assert "\n" not in line


def test_the_panel_shows_reward_throughput_queue_versions_faults_and_processes() -> None:
    """What a person watching wants to know is there."""
    console = Console(file=io.StringIO(), width=120)
    console.print(panel(snapshot()))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("0.500", "16 rows/s", "7 groups", "v3", "worker 2", "plane 1", "rows stale 8", "4711", "at work"):
        assert part in shown
    assert "prompts again" not in shown


@pytest.mark.parametrize("steps", [0, 1, 59, 60, 61, 1000])
def test_a_sparkline_fits_its_width(steps: int) -> None:
    """However many steps there were; rewards beyond 0..1 are clamped."""
    line = sparkline([i / max(1, steps) * 2 for i in range(steps)])
    assert len(line) <= 60
    assert steps == 0 or line[-1] in "█▂▁ "


def test_a_plain_view_speaks_now_and_then() -> None:
    """One line at once, the next after the period, unwrapped."""
    console = Console(file=io.StringIO(), width=40)
    view = PlainView(console, period_s=5.0)
    for seconds in (1.0, 2.0, 5.9, 6.1, 7.0):
        view.show(snapshot(seconds))
    view.close()
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.split()[0] for line in lines] == ["1.0", "6.1"]


def test_the_view_suits_its_console() -> None:
    """A terminal gets the live table, anything else lines; closing twice is harmless."""
    assert isinstance(view_on(Console(file=io.StringIO())), PlainView)
    live = view_on(Console(file=io.StringIO(), force_terminal=True, width=100))
    assert isinstance(live, LiveView)
    live.show(snapshot())
    live.close()
    live.close()
