"""Draws the machines of the documents, and writes their table of points, from the code's own tables.

``python -m tests.diagrams`` rewrites what is out of date.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from penstock.controller.events import RunEvent
from penstock.controller.run import PHASES
from penstock.endpoint.events import Kind
from penstock.endpoint.table import TRANSITIONS as HANDSHAKE
from penstock.endpoint.table import Standing, State
from penstock.host.blocks import TABLE as BLOCKS
from penstock.ledger.leasing import TRANSITIONS as LEASING
from penstock.payload.slots import TRANSITIONS as SLOTS
from penstock.points import POINTS
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


def slots() -> str:
    """The slot machine, as mermaid: an event may lead elsewhere while tokens or pins are still out."""
    edges = []
    for (state, event), after in SLOTS.items():
        leads = {after.unheld: "", after.pinned: ", pins out", after.read: ", tokens out"}
        if after.read is after.pinned is not after.unheld:
            leads[after.read] = ", tokens or pins out"
        if after.read is not after.pinned is after.unheld:
            leads[after.unheld] = ", the last"
        if len(leads) == 1:
            leads = {after.unheld: ""}
        edges += [f"    {state.value} --> {to.value}: {event.__name__}{held}" for to, held in leads.items()]
    return "\n".join(["stateDiagram-v2", "    [*] --> free", *edges])


def leasing() -> str:
    """The table of a row's life for one task, as mermaid."""
    edges = [f"    {hold.value} --> {to.value}: {step.value}" for (hold, step), to in LEASING.items()]
    return "\n".join(["stateDiagram-v2", "    [*] --> ready", *edges])


def controller() -> str:
    """The table of a run's phases, as mermaid."""
    edges = [f"    {phase.value} --> {to.value}: {what}" for (phase, what), to in PHASES.items()]
    return "\n".join(["stateDiagram-v2", "    [*] --> recovering", *edges, "    over --> [*]"])


def blocks() -> str:
    """The table of a block's life on a host, as mermaid; what changes no state is left out."""
    edges = [
        f"    {state.name.lower()} --> {to.name.lower()}: {what.value}"
        for (state, what), to in BLOCKS.items()
        if state is not to
    ]
    return "\n".join(["stateDiagram-v2", "    [*] --> waiting", *edges, "    gone --> [*]"])


def handshake() -> str:
    """The table of an endpoint's states, as mermaid; what changes no state is in the table of rules."""
    before = {
        Standing.GONE: "[*]",
        Standing.UNBOUND: State.Q.value,
        Standing.BOUND: State.B.value,
        Standing.READY: State.R.value,
        Standing.ELSEWHERE: "[*]",  # beside the endpoint that is bound elsewhere
    }
    edges = []
    for (standing, what), rule in HANDSHAKE.items():
        if rule.after is not None and rule.after is not State.DEAD:
            beside = ", beside another" if standing is Standing.ELSEWHERE else ""
            edges.append(f"    {before[standing]} --> {rule.after.value}: {_heard(what)}{beside}")
    return "\n".join(["stateDiagram-v2", *edges, f"    {State.DRAIN.value} --> [*]: Drained"])


def _heard(what: Kind | type) -> str:
    return what.value if isinstance(what, Kind) else what.__name__


DRAWN: dict[str, Callable[[], str]] = {
    "handshake": handshake,
    "retry": retry,
    "slots": slots,
    "leasing": leasing,
    "controller": controller,
    "blocks": blocks,
}
_PLACE = re.compile(r"(<!-- machine: (\w+) -->\n)(?:\n?```mermaid\n.*?\n```\n)?", re.DOTALL)
_POINTS_PLACE = re.compile(r"(<!-- points -->\n)(?:\n(?:\|.*\n)+)?")
_RULES_PLACE = re.compile(r"(<!-- handshake rules -->\n)(?:\n(?:\|.*\n)+)?")
_EVENTS_PLACE = re.compile(r"(<!-- events -->\n)(?:\n(?:\|.*\n)+)?")


def points() -> str:
    """The points at which a fault may strike, as a table."""
    rows = [f"| `{point.name}` | {point.says} |" for point in POINTS]
    return "\n".join(["| point | what is done, what is not |", "|---|---|", *rows])


def handshake_rules() -> str:
    """What an endpoint does with each message and event, by what it is to the sender, as a table."""
    heard = list(dict.fromkeys(what for _, what in HANDSHAKE))
    rows = []
    for what in heard:
        rules = (HANDSHAKE.get((standing, what)) for standing in Standing)
        told = " | ".join("" if rule is None else rule.step.value for rule in rules)
        rows.append(f"| `{_heard(what)}` | {told} |")
    head = " | ".join(standing.value for standing in Standing)
    return "\n".join([f"| | {head} |", "|---" * (1 + len(Standing)) + "|", *rows])


def events() -> str:
    """A run's events as a table: their records' fields and docstrings."""
    rows = []
    for kind in get_args(RunEvent):
        said, _, attributes = (inspect.getdoc(kind) or "").partition("\n\nAttributes:\n")
        said = " ".join([said, *(f"{line.strip().rstrip('.')};" for line in attributes.splitlines())])
        fields = ", ".join(f"`{name}`" for name in kind.__struct_fields__ if name not in ("at", "life"))
        rows.append(f"| `{kind.__name__}` | {fields} | {' '.join(said.rstrip(';').replace('``', '`').split())} |")
    return "\n".join(["| event | fields | what it says |", "|---|---|---|", *rows])


def redrawn(text: str) -> str:
    """Return ``text`` with each diagram as its machine's table has it now, and the tables as they are."""
    text = _RULES_PLACE.sub(lambda place: f"{place[1]}\n{handshake_rules()}\n", text)
    text = _EVENTS_PLACE.sub(lambda place: f"{place[1]}\n{events()}\n", text)
    text = _POINTS_PLACE.sub(lambda place: f"{place[1]}\n{points()}\n", text)
    return _PLACE.sub(lambda place: f"{place[1]}\n```mermaid\n{DRAWN[place[2]]()}\n```\n", text)


if __name__ == "__main__":
    for path in DOCS.rglob("*.md"):
        path.write_text(redrawn(path.read_text()))
