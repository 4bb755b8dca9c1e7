"""The documents are true as far as a machine can tell: snippets run, links lead somewhere, commands exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import penstock
from tests.diagrams import redrawn

REPOSITORY = Path(__file__).parents[1]
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
NAMES = [str(path.relative_to(REPOSITORY)) for path in DOCUMENTS]

# ```python runs; all snippets of a document run in order, in one namespace, as a reader would type them.
# A line <!-- plane --> above one says that it needs ``penstock.connect``.
SNIPPET = re.compile(r"^(?P<mark><!-- plane -->\n)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]+)(?:#[^)]*)?\)")
TARGET = re.compile(r"`make ([a-z]+)")


def script(text: str, name: str, *, has_plane: bool) -> str:
    """Return the document's snippets as one script; lines keep their numbers, so that a traceback leads there."""
    lines: list[str] = [""] * len(text.splitlines())
    for found in SNIPPET.finditer(text):
        start = text[: found.start("code")].count("\n")
        code = found["code"].splitlines()
        compile("\n" * start + found["code"], name, "exec")
        if has_plane or not found["mark"]:
            lines[start : start + len(code)] = code
    return "\n".join(lines)


def run(code: str, name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program = f"exec(compile(open('snippets.py').read(), {name!r}, 'exec'), {{'__name__': '__main__'}})"
    (folder / "snippets.py").write_text(code)
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_snippets_run(path: Path, tmp_path: Path) -> None:
    """What a document shows as Python does what it says: its asserts hold."""
    code = script(path.read_text(), path.name, has_plane=hasattr(penstock, "connect"))
    if code.strip():
        done = run(code, path.name, tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(path: Path) -> None:
    """A link to a file of the repository finds it."""
    broken = [target for target in LINK.findall(path.read_text()) if not (path.parent / target).exists()]
    assert broken == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_make_targets_exist(path: Path) -> None:
    """A document names only targets that the Makefile has."""
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert set(TARGET.findall(path.read_text())) <= targets


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_diagrams_are_those_of_the_tables(path: Path) -> None:
    """A machine's picture is drawn from its table: ``python -m tests.diagrams`` draws it again."""
    assert redrawn(path.read_text()) == path.read_text()


def test_an_outdated_diagram_is_found() -> None:
    """A picture that differs from the table is replaced."""
    text = "<!-- machine: retry -->\n\n```mermaid\nold\n```\nmore\n"
    assert "old" not in redrawn(text)
    assert redrawn(text).endswith("```\nmore\n")


def test_the_reader_of_snippets_reads_them(tmp_path: Path) -> None:
    """A failing snippet fails with its own line; a marked one waits for the plane; other fences are left alone."""
    text = "# Title\n```python\nx = 1\n```\n<!-- plane -->\n```python\nassert x == 2\n```\n```bash\nrm -rf /\n```\n"
    assert run(script(text, "t.md", has_plane=False), "t.md", tmp_path).returncode == 0
    failed = run(script(text, "t.md", has_plane=True), "t.md", tmp_path)
    assert failed.returncode == 1
    assert '"t.md", line 7' in failed.stderr
    with pytest.raises(SyntaxError):
        script("```python\nx = = 1\n```\n", "t.md", has_plane=False)
    assert LINK.findall("[a](b.md#c) [d](https://e.f) [g](h/i.md)") == ["b.md", "h/i.md"]
