"""Who may import whom: the rooms' arrows, and what no room may import at all, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "penstock"

WORDS = frozenset({"errors", "records", "config", "debts", "requests", "parts", "reports", "hosting", "points"})
# room -> the rooms that it may import; the words may be imported by all. Rooms that later releases bring are listed.
ARROWS: dict[str, frozenset[str]] = {
    **dict.fromkeys(WORDS, frozenset[str]()),
    "retry": frozenset(),
    "wire": frozenset(),
    "ledger": frozenset(),
    "payload": frozenset({"retry"}),
    "endpoint": frozenset({"wire", "retry"}),
    "transport": frozenset({"payload", "endpoint", "wire", "retry"}),
    "host": frozenset({"server", "ledger", "plane", "transport", "payload", "endpoint", "wire", "retry"}),
    "server": frozenset({"ledger", "payload", "transport", "wire"}),
    "plane": frozenset({"payload", "transport", "wire", "retry"}),
    "group": frozenset({"wire", "retry"}),
    "controller": frozenset({"plane", "retry"}),
}
CORE = frozenset(ARROWS)
OUTER = frozenset({"ops", "demo", "compat", "launch"})  # these use anything
ARROWS |= dict.fromkeys(OUTER, CORE | OUTER)
ARROWS["ops"] |= {"testing"}
ARROWS["demo"] |= {"testing"}
ARROWS["testing"] = CORE
ARROWS["__init__"] = frozenset({"plane"})
ARROWS["__main__"] = frozenset({"ops"})

PICKLES = frozenset({"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"})
HEAVY = frozenset({"torch", "tensordict"})  # seconds to import, gigabytes to install
WITHOUT_TORCH = WORDS | {"retry", "wire", "ledger", "endpoint", "server", "controller", "__init__", "__main__"}


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name and its tree."""

    name: str
    tree: ast.Module
    is_package: bool = False

    @property
    def room(self) -> str:
        """The first name below ``penstock``; the package's own file is "__init__"."""
        return [*self.name.split("."), "__init__"][1]

    def imports(self) -> Iterator[tuple[int, str]]:
        """Every import of the file, those inside functions too: (line, absolute dotted name)."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self._absolute(node)
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        up = node.level - 1 if self.is_package else node.level
        return ".".join(self.name.split(".")[: len(self.name.split(".")) - up] + ([node.module] if node.module else []))


def sources() -> list[Module]:
    found = []
    for path in sorted(SRC.rglob("*.py")):
        parts = path.relative_to(SRC.parent).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found.append(Module(name, ast.parse(path.read_text()), is_package))
    return found


def module(source: str, name: str, *, is_package: bool = False) -> Module:
    return Module(name, ast.parse(source), is_package)


def against_arrows(m: Module) -> list[str]:
    """Return the imports of ``m`` that no arrow allows."""
    if m.room not in ARROWS:
        return [f"{m.name}: the room {m.room!r} is not in the table of arrows"]
    allowed = ARROWS[m.room] | WORDS | {m.room}
    found = []
    for line, name in m.imports():
        top, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if top == "penstock" and target not in allowed and (target in ARROWS or target == "*"):
            found.append(f"{m.name}:{line} {m.room} -> {target}")
    return found


def pickle_like(m: Module) -> list[str]:
    """Return what in ``m`` could run code out of data."""
    found = [f"{m.name}:{line} imports {name}" for line, name in m.imports() if name.split(".")[0] in PICKLES]
    for node in ast.walk(m.tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in {"eval", "exec", "torch.load", "torch.save"}:
            found.append(f"{m.name}:{node.lineno} calls {called}")
        if any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords):
            found.append(f"{m.name}:{node.lineno} allows pickle")
    return found


def heavy_imports(m: Module) -> list[str]:
    """Return the imports of torch in a room that must live without it."""
    if m.room not in WITHOUT_TORCH:
        return []
    return [f"{m.name}:{line} imports {name}" for line, name in m.imports() if name.split(".")[0] in HEAVY]


RULES = [against_arrows, pickle_like, heavy_imports]


@pytest.mark.parametrize("rule", RULES)
def test_no_room_breaks_the_rule(rule: object) -> None:
    """Nothing in the source goes against the arrows, can run code out of data, or loads torch where it must not."""
    assert callable(rule)
    assert [finding for m in sources() for finding in rule(m)] == []


@pytest.mark.parametrize(
    ("source", "name", "finding"),
    [
        ("from penstock.server import app", "penstock.plane.local", "plane -> server"),
        ("import penstock.ledger.state", "penstock.plane.local", "plane -> ledger"),
        ("def f():\n    from penstock.plane import connect", "penstock.server.app", "server -> plane"),
        ("from penstock import ledger", "penstock.retry.shell", "retry -> ledger"),
        ("from ..ledger import state", "penstock.wire.frames", "wire -> ledger"),
        ("from . import state\nfrom .. import ops", "penstock.ledger.apply", "ledger -> ops"),
        ("from penstock.testing import sim", "penstock.plane.noop", "plane -> testing"),
        ("from penstock.testing import sim", "penstock.compat.nemo", "compat -> testing"),
        ("import penstock.retry", "penstock.errors", "errors -> retry"),
        ("if True:\n    from penstock.ops import cli", "penstock.testing.sim", "testing -> ops"),
        ("x = 1", "penstock.attic.junk", "'attic' is not in the table"),
    ],
)
def test_a_planted_import_against_the_arrows_is_found(source: str, name: str, finding: str) -> None:
    """The checker fires on each way to write a forbidden import."""
    assert finding in "".join(against_arrows(module(source, name)))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from penstock.errors import DataPlaneError", "penstock.ledger.state"),
        ("from penstock.retry import Deadline", "penstock.payload.arena"),
        ("from penstock.ledger.state import Ledger", "penstock.server.app"),
        ("from penstock.testing import sim", "penstock.ops.rehearse"),
        ("from . import state", "penstock.ledger.apply"),
    ],
)
def test_an_import_along_an_arrow_is_allowed(source: str, name: str) -> None:
    """The checker does not fire on what is right."""
    assert against_arrows(module(source, name)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import dumps",
        "def f():\n    import marshal",
        "import shelve as s",
        "eval('1')",
        "torch.load('x.pt')",
        "np.load('x.npy', allow_pickle=True)",
    ],
)
def test_planted_code_out_of_data_is_found(source: str) -> None:
    """The checker fires on pickle and on its cousins."""
    assert pickle_like(module(source, "penstock.wire.frames"))


def test_planted_torch_in_the_server_is_found() -> None:
    """Even where it is imported at use."""
    assert heavy_imports(module("def f():\n    import torch.nn", "penstock.server.app"))
    assert heavy_imports(module("def f():\n    import torch", "penstock.plane.local")) == []


def test_the_arrows_have_no_circle() -> None:
    """The core rooms can be put in an order in which each imports only those before it."""
    order: list[str] = []
    while len(order) < len(CORE):
        free = [room for room in sorted(CORE) if room not in order and ARROWS[room] <= set(order)]
        assert free, f"a circle among {sorted(CORE - set(order))}"
        order += free


def test_every_room_says_what_it_is_for() -> None:
    """A folder's ``__init__`` opens with what it is for and what it may import."""
    rooms = [m for m in sources() if m.is_package and m.name.count(".") == 1]
    assert {m.room for m in rooms} >= {"retry"}
    silent = [m.name for m in rooms if "may import" not in (ast.get_docstring(m.tree) or "").lower()]
    assert silent == []


def test_the_core_does_not_load_torch() -> None:
    """Importing the package, the command line and all of the server's rooms, in a fresh process, leaves torch alone."""
    light = sorted(
        m.name
        for m in sources()
        if m.room in WITHOUT_TORCH - {"__main__"} or m.name in {"penstock.ops.cli", "penstock.plane"}
    )
    code = (
        f"import importlib, sys\n"
        f"for name in {light!r}:\n"
        f"    importlib.import_module(name)\n"
        f"    heavy = {set(HEAVY)!r} & sys.modules.keys()\n"
        f"    assert not heavy, f'{{name}} loads {{heavy}}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
