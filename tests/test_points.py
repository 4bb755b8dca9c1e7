"""The points of the code: each stands in the table and is called in its room, and costs next to nothing."""

from __future__ import annotations

import ast
import re
import timeit
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock import points
from penstock.errors import BadArgument
from penstock.points import POINTS, Point, install, reached
from tests.diagrams import redrawn

SRC = Path(__file__).parents[1] / "src" / "penstock"
POINT_ROOMS = {point.name: point.room for point in POINTS}
LOOKS_LIKE_ONE = re.compile(rf"({'|'.join({point.role for point in POINTS})})\.[a-z]+")
# A room that is being built owes its points as soon as the module is there that does what its machine decides.
SHELLS = {"controller": SRC / "controller" / "single.py"}


def is_built(room: str) -> bool:
    return room not in SHELLS or SHELLS[room].exists()


def calls_of(source: str, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name:
            yield node


def named(source: str) -> Iterator[tuple[int, str]]:
    """Every name that a call is given and that looks like a point's: line, name."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        for value in [*node.args, *(keyword.value for keyword in node.keywords)]:
            if isinstance(value, ast.Constant) and LOOKS_LIKE_ONE.fullmatch(str(value.value)):
                yield node.lineno, str(value.value)


def wrong_calls(source: str, room: str) -> list[str]:
    """Return the names that are no point of this room's, and the calls of ``reached`` that name none.

    A function that is told its ``point`` may reach it: who calls it names it.
    """
    found = [f"{line}: {name} in {room}" for line, name in named(source) if POINT_ROOMS.get(name) != room]
    for call in calls_of(source, "reached"):
        told = ast.unparse(call.args[0])
        if told != "point" and ast.literal_eval(told if told[0] in "'\"" else "''") not in POINT_ROOMS:
            found.append(f"{call.lineno}: reached({told}) in {room}")
    return found


def looped_calls(source: str) -> list[int]:
    """Return the lines of calls within a ``for``: what could be reached once per row."""
    loops = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.For | ast.AsyncFor)]
    return [call.lineno for loop in loops for call in calls_of(ast.unparse(loop), "reached")]


def sources() -> Iterator[tuple[str, str, str]]:
    """Every module but the table itself: its path, its room, its text."""
    for path in sorted(SRC.rglob("*.py")):
        if path != SRC / "points.py":
            yield str(path.relative_to(SRC)), path.relative_to(SRC).parts[0], path.read_text()


def test_every_call_names_a_point_of_its_room() -> None:
    """What ``reached`` is called with stands in the table, for the room that calls it."""
    assert [f"{path}:{wrong}" for path, room, text in sources() for wrong in wrong_calls(text, room)] == []


STEPS_OF_A_PUT = ["client.putting", "client.granted", "client.copied", "client.put"]


def test_every_point_is_called_once() -> None:
    """A point of the table is one place of the code, once its room is built; a put has three ways of the same steps."""
    called = [name for _, _, text in sources() for _, name in named(text)]
    counts = {point.name: called.count(point.name) for point in POINTS if is_built(point.room)}
    assert {name: count for name, count in counts.items() if count != 1} == dict.fromkeys(STEPS_OF_A_PUT, 3)
    for way in ("plane/puts.py", "plane/remote_puts.py", "plane/store_puts.py"):
        assert sorted(name for _, name in named((SRC / way).read_text())) == sorted(STEPS_OF_A_PUT)


def test_no_point_is_reached_once_per_row() -> None:
    """No call stands within a loop over things, and none in a machine."""
    assert [path for path, _, text in sources() if looped_calls(text)] == []
    assert [path for path, _, text in sources() if "machine" in path and list(calls_of(text, "reached"))] == []


def test_planted_calls_are_found() -> None:
    """The scan sees unknown names, other rooms' points, names made at run time, and loops."""
    assert wrong_calls("reached('client.putt')", "plane")
    assert wrong_calls("points.reached('client.put')", "server")
    assert wrong_calls("reached(f'client.{x}')", "plane")
    assert wrong_calls("bounded(work, point='client.putt')", "plane")
    assert wrong_calls("reached('half_way')", "plane")
    assert wrong_calls("reached('client.put')", "plane") == []
    assert wrong_calls("def f(point):\n    reached(point)\nf('client.put')", "plane") == []
    assert looped_calls("for row in rows:\n    if row:\n        reached('client.put')")
    assert looped_calls("while True:\n    reached('client.put')") == []


def test_the_table_is_readable() -> None:
    """Names are unique and say role and moment; each sentence tells what is done and what is not."""
    assert len(POINT_ROOMS) == len(POINTS)
    for point in POINTS:
        assert re.fullmatch(r"[a-z]+\.[a-z]+", point.name)
        assert re.fullmatch(r"[A-Z].{20,100}\.", point.says), point
        assert (SRC / point.room).is_dir()
    assert Point("client.put", "plane", "").role == "client"


def test_nothing_happens_without_a_hook() -> None:
    """Out of a test a point is a name and nothing more, be it in the table or not."""
    assert points._hook is None
    reached("client.put")
    reached("nobody knows")


def test_one_hook_hears_every_point_until_it_is_restored() -> None:
    """The hook is called with the name; a second one is refused; restoring ends it, and only it, once and for all."""
    heard: list[str] = []
    restore = install(heard.append)
    try:
        reached("client.put")
        with pytest.raises(BadArgument, match="installed already"):
            install(print)
    finally:
        restore()
    reached("client.popped")
    assert heard == ["client.put"]
    others: list[str] = []
    end = install(others.append)
    restore()
    reached("client.read")
    end()
    assert (heard, others) == (["client.put"], ["client.read"])


def test_only_testing_installs_a_hook() -> None:
    """No other room may reach into the code by way of its points."""
    users = [path for path, _, text in sources() if re.search(r"points import.*\binstall\b|points\.install\b", text)]
    assert users == ["testing/injection.py"]


def test_a_point_costs_no_more_than_a_call() -> None:
    """Without a hook it is a function that looks at one global: within a few times an empty function's cost."""
    space = {"reached": reached, "empty": lambda _point: None}
    cost, least = (
        min(timeit.repeat(f"{name}('client.put')", globals=space, number=20_000, repeat=7))
        for name in ("reached", "empty")
    )
    assert cost < 5 * least


def test_the_documents_hold_the_table() -> None:
    """It is where people look for it, and what is out of date there is rewritten."""
    shown = (Path(__file__).parents[1] / "docs" / "failure-modes.md").read_text()
    assert [p.name for p in POINTS if f"| `{p.name}` | {p.says} |" not in shown] == []
    assert "| old |" not in redrawn("<!-- points -->\n\n| old |\n\nmore\n")
    assert redrawn("<!-- points -->\nmore\n").endswith("|\nmore\n")
