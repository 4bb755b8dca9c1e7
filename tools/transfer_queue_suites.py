"""Run TransferQueue's own behaviour suites on a storage backend, ours or one of its own.

    python tools/transfer_queue_suites.py --backend PenstockMooncake
    python tools/transfer_queue_suites.py --backend MooncakeStore --master 127.0.0.1:50051 --metadata 127.0.0.1:50050

The suites are those that the installed TransferQueue wheel carries: this checks each file against the wheel's record,
copies it to a temporary folder and runs it as it is. Nothing of it is kept. This module is also the pytest plug-in that
the runs load: all it does is to add the backend's configuration to the suites' table of backends, and import the
plug-in package once, as its users do.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET  # of a report that our own pytest wrote
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, PackagePath, distribution
from pathlib import Path
from typing import Any

# What a backend has to do, as TransferQueue tests it; the first two run on the backend named by TQ_TEST_BACKEND.
SUITES = {
    "kv": "tests/e2e/test_kv_interface_e2e.py",
    "lifecycle": "tests/e2e/test_e2e_lifecycle_consistency.py",
    "manager": "tests/test_kv_storage_manager.py",
}
# Not run: what asks for a GPU skips itself; checkpoints and SSD offload are SimpleStorage's alone (hard-wired there).
OURS = ("PenstockMooncake", "PenstockPlane")
CONFIG = "PENSTOCK_SUITES_CONFIG"  # environment: JSON, the section of the backend
SEGMENT_BYTES = 128 * 1024 * 1024  # as the suites' own configuration of MooncakeStore
SUITES_TIMEOUT_S = 540


@dataclass(frozen=True)
class Outcome:
    """One suite on one backend."""

    suite: str
    passed: int
    failed: int
    skipped: int
    seconds: float
    failures: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        return self.passed > 0 and self.failed == 0


# -- the plug-in ------------------------------------------------------------------------------------------------------


def pytest_configure() -> None:
    """Register the backends, as a user's program does with one import."""
    if os.environ.get("TQ_TEST_BACKEND") in OURS:
        import penstock.compat.transfer_queue_storage  # noqa: F401


def pytest_collection_modifyitems(items: Sequence[Any]) -> None:
    """Tell the suites how their backend is configured."""
    backend = os.environ.get("TQ_TEST_BACKEND", "")
    section = json.loads(os.environ.get(CONFIG, "{}"))
    for module in {item.module for item in items}:
        if hasattr(module, "BACKEND_CONFIGS"):
            module.BACKEND_CONFIGS[backend] = {
                "controller": {"polling_mode": True},
                "backend": {"storage_backend": backend, backend: section},
            }


# -- the runs ---------------------------------------------------------------------------------------------------------


def suites_folder(names: Sequence[str], into: Path) -> dict[str, Path]:
    """Copy the suites out of the installed wheel, unchanged: a file that differs from its record is refused."""
    try:
        files = {str(file): file for file in distribution("TransferQueue").files or ()}
    except PackageNotFoundError:
        sys.exit("TransferQueue is not installed: pip install 'penstock[transferqueue]'")
    found = {}
    for name in names:
        path = SUITES[name]
        if path not in files:
            sys.exit(f"this TransferQueue carries no {path}")
        source = Path(str(files[path].locate()))
        if not _is_as_recorded(files[path], source):
            sys.exit(f"{source} is not the file of the wheel")
        found[name] = Path(shutil.copy(source, into))
    return found


def _is_as_recorded(file: PackagePath, source: Path) -> bool:
    digest = base64.urlsafe_b64encode(hashlib.sha256(source.read_bytes()).digest()).rstrip(b"=").decode()
    return file.hash is not None and file.hash.mode == "sha256" and file.hash.value == digest


def run_suites(files: Mapping[str, Path], backend: str, section: Mapping[str, Any], ray_address: str) -> list[Outcome]:
    """Run the suites in one process of their own."""
    folder = next(iter(files.values())).parent
    report, log = folder / "report.xml", folder / "log"
    environment = os.environ | {
        "TQ_TEST_BACKEND": backend,
        CONFIG: json.dumps(section),
        "RAY_ADDRESS": ray_address,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }
    argv = [sys.executable, "-m", "pytest", "-q", "-p", Path(__file__).stem, "-p", "no:cacheprovider"]
    argv += ["-c", os.devnull, "--rootdir", str(folder), f"--junitxml={report}", *map(str, files.values())]
    with log.open("wb") as file:
        done = subprocess.run(
            argv, env=environment, cwd=folder, stdout=file, stderr=file, timeout=SUITES_TIMEOUT_S, check=False
        )
    if not report.exists():
        tail = log.read_text(errors="replace")[-2000:]
        return [Outcome(name, 0, 1, 0, 0.0, (f"pytest ended with {done.returncode}: {tail}",)) for name in files]
    cases = list(ET.parse(report).getroot().iter("testcase"))  # noqa: S314
    return [_outcome(name, [case for case in cases if _is_of(case, file)]) for name, file in files.items()]


def _is_of(case: ET.Element, file: Path) -> bool:
    return case.get("classname", "").split(".")[0] == file.stem


def _outcome(name: str, cases: Sequence[ET.Element]) -> Outcome:
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    failures = tuple(f"{case.get('classname')}.{case.get('name')}: {_why(case)}" for case in bad)
    seconds = sum(float(case.get("time", 0)) for case in cases)
    return Outcome(name, len(cases) - len(bad) - len(skipped), len(bad), len(skipped), round(seconds, 1), failures)


def _why(case: ET.Element) -> str:
    told = case.find("failure")
    told = case.find("error") if told is None else told
    return (told.get("message") or "")[:300] if told is not None else ""


@contextmanager
def local_ray() -> Iterator[str]:
    """A Ray of eight logical CPUs for the suites, whose own would start with as many as the machine has."""
    from ray.cluster_utils import Cluster

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_prestart_worker_first_driver": "0"}
    with tempfile.TemporaryDirectory(prefix="r-", ignore_cleanup_errors=True) as folder:
        cluster = Cluster()
        try:
            cluster.add_node(
                num_cpus=8, object_store_memory=150 * 1024 * 1024, include_dashboard=False, temp_dir=folder
            )
            yield cluster.address
        finally:
            cluster.shutdown()


def section_of(backend: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the configuration of ``backend``: sizes as in the suites' own, free ports."""
    if backend == "PenstockPlane":
        return {}
    if "Mooncake" not in backend:
        sys.exit(f"no configuration for {backend!r}; known: {', '.join(OURS)}, MooncakeStore")
    section = {
        "global_segment_size": SEGMENT_BYTES,
        "local_buffer_size": SEGMENT_BYTES,
        "protocol": "tcp",
        "device_name": "",
        "local_hostname": "127.0.0.1",
        "auto_init": not arguments.master,
        "master_server_address": arguments.master or f"127.0.0.1:{_free_port()}",
        "metadata_server": arguments.metadata or f"127.0.0.1:{_free_port()}",
    }
    if backend == "MooncakeStore" and not arguments.master:
        sys.exit("MooncakeStore needs --master and --metadata: left to itself it kills every mooncake_master here")
    return section


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def main() -> int:
    """Run the suites that are asked for; 0 when all of them passed."""
    arguments = _arguments()
    section = section_of(arguments.backend, arguments)
    with tempfile.TemporaryDirectory(prefix="penstock-suites-") as folder:
        files = suites_folder(arguments.suite or list(SUITES), Path(folder))
        with nullcontext(arguments.ray_address) if arguments.ray_address else local_ray() as ray:
            outcomes = run_suites(files, arguments.backend, section, ray)
    _tell(arguments.backend, outcomes, as_json=arguments.json)
    return 0 if all(outcome.is_clean for outcome in outcomes) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backend", required=True, help=f"{', '.join(OURS)}, or MooncakeStore")
    parser.add_argument("--suite", action="append", choices=list(SUITES), help="default: all")
    parser.add_argument("--master", help="host:port of a mooncake_master that runs; default: one is started")
    parser.add_argument("--metadata", help="host:port of its metadata server")
    parser.add_argument("--ray-address", help="of a Ray that runs; default: one is started")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser.parse_args()


def _tell(backend: str, outcomes: Sequence[Outcome], *, as_json: bool) -> None:
    lines = [json.dumps({"backend": backend, "suites": [asdict(outcome) for outcome in outcomes]})]
    if not as_json:
        lines = [line for outcome in outcomes for line in _lines(backend, outcome)]
    sys.stdout.write("\n".join(lines) + "\n")


def _lines(backend: str, outcome: Outcome) -> list[str]:
    counts = f"{outcome.passed:3} passed {outcome.failed:3} failed {outcome.skipped:3} skipped {outcome.seconds:7.1f} s"
    return [f"{backend:18} {outcome.suite:10} {counts}", *(f"    {failure}" for failure in outcome.failures)]


if __name__ == "__main__":
    sys.exit(main())
