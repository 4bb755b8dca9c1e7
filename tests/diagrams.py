"""Draws the machines of the documents from their tables. ``python -m tests.diagrams`` rewrites what is out of date."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from penstock.retry.machine import TRANSITIONS as RETRY

DOCS = Path(__file__).parents[1] / "docs"


def retry() -> str:
    """The retry machine, as mermaid."""
    edges = [
        f"    {state.value} --> {to.value}: {event.__name__}"
        for (state, event), (_, leads_to) in RETRY.items()
        for to in sorted(leads_to, key=lambda s: s.value)
    ]
    return "\n".join(["stateDiagram-v2", "    [*] --> idle", *edges, "    finished --> [*]"])


DRAWN: dict[str, Callable[[], str]] = {"retry": retry}
_PLACE = re.compile(r"(<!-- machine: (\w+) -->\n)(?:\n?```mermaid\n.*?\n```\n)?", re.DOTALL)


def redrawn(text: str) -> str:
    """Return ``text`` with each diagram as its machine's table has it now."""
    return _PLACE.sub(lambda place: f"{place[1]}\n```mermaid\n{DRAWN[place[2]]()}\n```\n", text)


if __name__ == "__main__":
    for path in DOCS.rglob("*.md"):
        path.write_text(redrawn(path.read_text()))
