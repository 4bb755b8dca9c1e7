"""The house style that a linter does not know: sizes, and where everything may be caught."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

SRC = Path(__file__).parents[1] / "src" / "penstock"

MAX_FUNCTION_LINES = 60
MAX_MODULE_LINES = 600
MAX_DOCSTRING_LINES = 15
TOP_FRAME = "# top frame"  # the comment that says: this catches everything, because nobody is above it
# Who waits in a loop, and why it is no retry loop: those are all in ``retry/``. Test beds, demos and benchmarks may.
WAITS = {
    "retry/shell.py": "the one retry loop; its twin for tasks waits for timers",
    "server/lock.py": "the kernel tells nobody when a file's lock is free",
    "endpoint/peering.py": "a peer's new session is awaited, by retry's own jitter",
    "host/reporting.py": "the agent waits for its plane, for as long as that is away",
    "launch/tether.py": "nobody tells when a process has begun to listen for a signal",
    "controller/single.py": "the controller waits for its plane, by retry's own delays",
}
WAITS_FREELY = {"testing", "demo", "ops"}
TREES = {"errors.py"}  # its docstring prints the whole tree of errors


def long_functions(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield f"{node.lineno} {node.name}: {lines} lines"


def broad_handlers(source: str) -> Iterator[str]:
    """Handlers that catch everything, keep it, and do not say that theirs is a top frame."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        if isinstance(last := node.body[-1], ast.Raise) and last.exc is None:
            continue  # cleans up and lets it pass
        caught = "bare" if node.type is None else ast.unparse(node.type)
        around = lines[max(0, node.lineno - 2) : node.lineno + 1]
        if re.search(r"\b(bare|Exception|BaseException)\b", caught) and not any(TOP_FRAME in line for line in around):
            yield f"{node.lineno} catches {caught}"


def sleeps_in_loops(source: str) -> Iterator[str]:
    """Calls that wait for a time, within a loop: what a retry loop is made of. ``sleep(0)`` waits for nothing."""
    loops = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.While | ast.For | ast.AsyncFor))
    for node in (node for loop in loops for node in ast.walk(loop)):
        if isinstance(node, ast.Call) and re.search(r"\bsleep\((?!0\))|_sleep\(", ast.unparse(node)):
            yield f"{node.lineno} sleeps in a loop"


def docstring_lines(source: str) -> int:
    return len((ast.get_docstring(ast.parse(source)) or "").splitlines())


def findings(rule: object) -> list[str]:
    assert callable(rule)
    return [f"{path.relative_to(SRC)}:{finding}" for path in SRC.rglob("*.py") for finding in rule(path.read_text())]


def test_functions_are_short() -> None:
    """No function is longer than 60 lines."""
    assert findings(long_functions) == []


def test_modules_are_short() -> None:
    """No module is longer than 600 lines."""
    sizes = {str(path.relative_to(SRC)): len(path.read_text().splitlines()) for path in SRC.rglob("*.py")}
    assert {name: size for name, size in sizes.items() if size > MAX_MODULE_LINES} == {}


def test_only_a_top_frame_catches_everything() -> None:
    """``except Exception`` stands only where the comment says that nobody is above."""
    assert findings(broad_handlers) == []


def test_there_is_one_retry_loop() -> None:
    """Nobody but the one policy's two shells waits and tries again; who waits for something else is named, with why."""
    found = {finding.partition(":")[0] for finding in findings(sleeps_in_loops)}
    assert {name for name in found if name.partition("/")[0] not in WAITS_FREELY} == set(WAITS)


def test_every_module_says_what_it_is_for() -> None:
    """A module opens with a docstring of at most 15 lines."""
    sizes = {str(p.relative_to(SRC)): docstring_lines(p.read_text()) for p in SRC.rglob("*.py") if p.name not in TREES}
    assert {name: size for name, size in sizes.items() if not 1 <= size <= MAX_DOCSTRING_LINES} == {}


def test_planted_faults_are_found() -> None:
    """Each rule fires on what it forbids, and only on that."""
    body = "\n".join("    x = 1" for _ in range(60))
    assert list(long_functions(f"def f():\n{body}")) == ["1 f: 61 lines"]
    assert list(long_functions(f"async def f():\n{body}")) == ["1 f: 61 lines"]
    caught = "try:\n    pass\nexcept {}:{}\n    pass\n"
    assert list(broad_handlers(caught.format("Exception", ""))) == ["3 catches Exception"]
    assert list(broad_handlers(caught.format("(OSError, BaseException)", ""))) == ["3 catches (OSError, BaseException)"]
    assert list(broad_handlers("try:\n    pass\nexcept:\n    pass\n")) == ["3 catches bare"]
    assert list(broad_handlers(caught.format("Exception", "  # top frame: logged"))) == []
    assert list(broad_handlers(caught.format("OSError", ""))) == []
    assert list(broad_handlers("try:\n    pass\nexcept BaseException:\n    undo()\n    raise\n")) == []
    assert list(sleeps_in_loops("while True:\n    if again():\n        time.sleep(1.0)\n")) == ["3 sleeps in a loop"]
    assert list(sleeps_in_loops("for delay in delays:\n    await asyncio.sleep(delay)\n")) == ["2 sleeps in a loop"]
    assert list(sleeps_in_loops("time.sleep(1.0)\nwhile True:\n    time.sleep(0)\n")) == []
    assert docstring_lines("x = 1") == 0
