"""``penstock demo``: checks what it needs, runs the job, shows it, and prints how it ended.

Invariants: whatever happens, ``run`` leaves no process, no thread and no shared memory; a run that succeeds or is
interrupted leaves no file but the curve (and ``out``, if asked for); one that fails keeps its logs and says where.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from rich.console import Console

from penstock.demo.finale import print_end, write_curve
from penstock.demo.interrupt import signals_as_flag
from penstock.demo.job import Job, Outcome
from penstock.demo.spec import DemoOptions, DemoResult, RunFiles
from penstock.demo.view import view_on
from penstock.errors import BadArgument, DataPlaneError, MissingExtra

__all__ = ["RunDirectory", "require_packages", "run", "run_directory"]

PACKAGES = ("torch", "tensordict", "safetensors", "matplotlib")  # the extra "demo"


def run(options: DemoOptions) -> DemoResult:
    """Run the main job and print how it ended (with ``options.json`` on stderr: stdout is the caller's).

    Raises:
        KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP came; everything has been removed.
        DataPlaneError: the plane could not be started, or could not be asked for its books.
        MissingExtra: a package of the extra ``demo`` is not installed.
        BadArgument: ``out`` is not empty, or the curve cannot be written where it should go.
    """
    require_packages()
    curve = _curve_path(options)
    progress = Console(stderr=True)
    with signals_as_flag() as interrupt, run_directory(options.out) as directory:
        job = Job(options, directory.files, interrupt)
        try:
            outcome = _run_job(job, progress)
        except DataPlaneError as error:
            error.message += f"; logs: {directory.keep()}"
            raise
        result = outcome.result
        if result.steps:
            write_curve(curve, job.rewards, job.fault_steps)
        if not result.ok:
            result = msgspec.structs.replace(result, why=f"{result.why}; logs: {directory.keep()}")
        if options.out is not None:
            (options.out / "result.json").write_bytes(msgspec.json.encode(result))
            (options.out / "verdict.json").write_bytes(msgspec.json.encode(outcome.report))
    shown = curve if result.steps else None
    print_end(progress if options.json else Console(), result, outcome.audit, outcome.report, shown)
    return result


def _run_job(job: Job, progress: Console) -> Outcome:
    try:
        view = view_on(progress)
        try:
            job.begin()
            why = job.supervise(view)
        finally:
            view.close()
        return job.conclude(why)
    finally:
        job.close()


class RunDirectory:
    """The folder of a run: ``out``, which stays, or a temporary one, which goes unless it is needed to see why."""

    def __init__(self, out: Path | None) -> None:
        self._stays = out is not None
        self.files = RunFiles(out or Path(tempfile.mkdtemp(prefix="penstock-demo-")))

    def keep(self) -> Path:
        """Let what the processes said and wrote down stay; return where it is."""
        if not self._stays:
            self._stays = True
            for folder in (self.files.plane, self.files.checkpoints):
                shutil.rmtree(folder, ignore_errors=True)
        return self.files.root

    def leave(self) -> None:
        if not self._stays:
            shutil.rmtree(self.files.root, ignore_errors=True)


@contextmanager
def run_directory(out: Path | None) -> Iterator[RunDirectory]:
    """Yield the folder of a run; ``out``: where the user wants it.

    Raises:
        BadArgument: ``out`` is not empty.
    """
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise BadArgument(f"{out} is not empty: name another folder, or empty it")
    directory = RunDirectory(out and out.absolute())
    try:
        yield directory
    finally:
        directory.leave()


def _curve_path(options: DemoOptions) -> Path:
    path = options.curve or (options.out / "reward.png" if options.out is not None else Path("penstock-demo.png"))
    folder = path.parent
    if folder != options.out and not os.access(folder, os.W_OK):
        raise BadArgument(f"the reward curve cannot be written into {folder.absolute()}: name a file with --curve")
    return path


def require_packages() -> None:
    """See that the extra ``demo`` is installed.

    Raises:
        MissingExtra: it is not.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(f"the demo needs {', '.join(missing)}; install with: pip install 'penstock[demo]'")
