"""The end of a run: the reward curve and what is printed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from penstock.demo.chaos import CABLE, KINDS_OF_HOSTS
from penstock.demo.prompt_books import PromptBooks
from penstock.demo.spec import REWARD_WINDOW, DemoResult, RecoveryTimes, window_mean
from penstock.ops.tables import audit_table
from penstock.requests import AuditReport
from penstock.testing.checker import Report

__all__ = ["print_end", "write_curve"]


_COLOURS = ("tab:orange", "tab:red", "tab:brown", "tab:green", "tab:purple", "tab:cyan", "tab:gray")


def write_curve(path: Path, rewards: Sequence[float], faults: Sequence[tuple[int, str]]) -> None:
    """Draw the reward per step, with a line at each fault.

    Args:
        path: a PNG; its folder must exist.
        rewards: per step.
        faults: (steps made when it fired, kind).
    """
    import matplotlib as mpl

    mpl.use("Agg")  # no display is needed
    from matplotlib import pyplot as plt

    steps = range(1, len(rewards) + 1)
    smooth = [window_mean(rewards[max(0, step - REWARD_WINDOW) : step]) for step in steps]
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120)
    axes.plot(steps, rewards, color="tab:blue", alpha=0.3, linewidth=1)
    axes.plot(steps, smooth, color="tab:blue", label=f"reward, mean of {REWARD_WINDOW} steps")
    colours = dict(zip(KINDS_OF_HOSTS, _COLOURS, strict=True))
    for kind in dict.fromkeys(kind for _, kind in faults):
        at = [step for step, other in faults if other == kind]
        label = "cable cut" if kind == CABLE else f"kill -9 {kind}"
        axes.vlines(at, 0, 1, color=colours.get(kind, "black"), alpha=0.6, linewidth=1, label=label)
    axes.set(xlabel="training step", ylabel="reward", ylim=(0, 1), title="GRPO on Penstock")
    axes.legend(loc="center left")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def print_end(console: Console, result: DemoResult, audit: AuditReport, report: Report, curve: Path | None) -> None:
    """Print the books, the verdict and the figures."""
    console.print(audit_table(audit))
    lines = [
        Text(f"checker: {report.verdict()}", style="green" if report.ok else "bold red"),
        prompts_line(result.prompts),
        Text(f"reward {result.first_reward:.3f} -> {result.final_reward:.3f} in {result.steps} steps, ")
        + Text(f"{result.rows_trained} rows, {result.seconds:.1f} s"),
        *recovery_lines(result),
    ]
    if curve is not None:
        lines.append(Text(f"curve: {curve}"))
    if not result.ok:
        lines.append(Text(f"not what was asked for: {result.why}", style="bold red"))
    for line in lines:
        console.print(line, soft_wrap=True)


def prompts_line(books: PromptBooks) -> Text:
    """Return the books of prompts in one line."""
    equation = f"dispatched {books.dispatched} = trained {books.trained} + dropped {books.dropped} + open {books.open}"
    said = "; ".join(books.wrong) or "none trained twice, none skipped"
    return Text(f"prompts: {equation}; {said}", style="bold red" if books.wrong else "green")


def recovery_lines(result: DemoResult) -> list[Text]:
    """Return how long it took to get on after the faults; nothing when there were none."""
    if result.recovery_s is None:
        return []
    kinds = [f"{kind} {_span(times)}" for kind, times in result.recovery_by_kind_s.items()]
    lines = [Text(f"recovery (p50, max): {_span(result.recovery_s)}; by role: {', '.join(kinds)}")]
    if result.resume_s is not None:
        lines.append(Text(f"plane back to next step (p50, max): {_span(result.resume_s)}"))
    return lines


def _span(times: RecoveryTimes) -> str:
    return f"{times.p50:.2f} s, {times.max:.2f} s"
