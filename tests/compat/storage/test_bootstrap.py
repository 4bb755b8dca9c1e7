"""What ``init`` starts: it serves, it ends with its owner however that ends, and it touches nobody else's."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from penstock.compat.transfer_queue_storage import PenstockMooncakeClient, PenstockPlaneClient
from penstock.compat.transfer_queue_storage.bootstrap import MOONCAKE, PLANE, Plugin, start_mooncake, start_plane
from penstock.compat.transfer_queue_storage.guarded import Guarded
from penstock.errors import BadArgument, DataPlaneUnavailable
from penstock.testing.mooncake import MooncakeCluster
from tests.leaks import wait_for

SLEEP = [sys.executable, "-c", "import time; time.sleep(100)"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "program"
    folder.mkdir()
    return folder


def _telling(pid_file: Path) -> list[str]:
    """A program that writes its number and waits."""
    code = f"import os,time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(99)"
    return [sys.executable, "-c", code]


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def _conf(**backend: Any) -> DictConfig:
    return OmegaConf.create({"backend": backend}, flags={"allow_objects": True})


def _free_ports() -> Iterator[str]:
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    for server in servers:
        yield f"127.0.0.1:{server.getsockname()[1]}"
    for server in servers:
        server.close()


def test_a_program_ends_when_it_is_closed(folder: Path) -> None:
    """Closing ends the program and removes its folder; closing again does nothing."""
    pid_file = folder / "pid"
    argv = [
        sys.executable,
        "-c",
        f"import os,time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(99)",
    ]
    program = Guarded(argv, folder, lambda: pid_file.exists() and bool(pid_file.read_text()), what="it", timeout_s=20)
    pid = int(pid_file.read_text())
    assert _alive(pid)
    program.close()
    program.close()
    assert not _alive(pid)
    assert not folder.exists()


def test_a_program_ends_when_its_owner_is_forgotten(folder: Path) -> None:
    """The last reference ends it, as TransferQueue's ``close`` does, which only forgets."""
    program = Guarded(SLEEP, folder, lambda: True, what="it", timeout_s=20)
    guard = program._guard
    del program
    assert guard.poll() is not None
    assert not folder.exists()


def test_a_program_ends_when_its_owner_is_killed(folder: Path) -> None:
    """After ``kill -9`` of the process that started it neither the program nor its folder is left."""
    code = f"""
import pathlib, time
from penstock.compat.transfer_queue_storage.guarded import Guarded
folder = pathlib.Path({str(folder)!r})
program = Guarded({_telling(folder / "pid")!r}, folder, lambda: (folder / "pid").exists(), what="it", timeout_s=20)
print("up", flush=True)
time.sleep(99)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "up\n"
        pid = int((folder / "pid").read_text())
        assert _alive(pid)
        owner.send_signal(signal.SIGKILL)
    wait_for(lambda: not _alive(pid) and not folder.exists(), timeout_s=20)


def test_a_program_that_does_not_listen_to_reason_is_killed(folder: Path) -> None:
    """One that ignores SIGTERM is killed after a while."""
    code = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"
    log = folder / "log"
    is_up = lambda: b"up" in log.read_bytes()  # noqa: E731
    program = Guarded([sys.executable, "-c", code], folder, is_up, what="it", timeout_s=20, grace_s=1.0)
    began = time.monotonic()
    program.close()
    assert 0.8 < time.monotonic() - began < 30.0
    assert not folder.exists()


@pytest.mark.parametrize(
    ("code", "said"),
    [("raise SystemExit('no room')", "it ended with 1 as it started: no room"), ("input()", "it ended with 1")],
)
def test_a_program_that_does_not_start_says_why(folder: Path, code: str, said: str) -> None:
    """Its own last words are in the error, and nothing is left."""
    with pytest.raises(DataPlaneUnavailable, match=said):
        Guarded([sys.executable, "-c", code], folder, lambda: False, what="it", timeout_s=30)
    assert not folder.exists()


def test_a_program_that_never_serves_is_given_up(folder: Path) -> None:
    """One that lives and does not serve is ended at the deadline."""
    with pytest.raises(DataPlaneUnavailable, match="did not serve within 0"):
        Guarded(SLEEP, folder, lambda: False, what="it", timeout_s=0.2)
    assert not folder.exists()


def test_a_plane_for_one_system() -> None:
    """Without a section a plane is started, its section names it for all processes, and it ends with the system."""
    conf = _conf()
    system = start_plane(conf)
    section = conf.backend[PLANE]
    assert section.plugin is Plugin.PLANE
    client = PenstockPlaneClient({**section, "timeout_s": 5.0})
    try:
        places = client.put(["0@a"], [torch.arange(3)])
        assert client.get(["0@a"], custom_backend_meta=places)[0].tolist() == [0, 1, 2]
        system.close()
        with pytest.raises(DataPlaneUnavailable):
            client.put(["0@a"], [1])
    finally:
        system.close()
        client.close()
    assert not Path(section.data_dir).parent.exists(), "a client revived the plane"


def test_options_of_the_plane_reach_it() -> None:
    """``plane`` of the section configures the plane that is started; a wrong one is refused with its reason."""
    with pytest.raises(DataPlaneUnavailable, match="max_bites"):
        start_plane(_conf(PenstockPlane={"plane": {"max_bites": 5}}))


def test_a_plane_that_is_named_is_not_started() -> None:
    """A section with ``url`` or ``data_dir`` is left as it is, but for its namespace and marker."""
    conf = _conf(PenstockPlane={"data_dir": "/somewhere", "namespace": "mine"})
    start_plane(conf).close()
    assert dict(conf.backend[PLANE]) == {"data_dir": "/somewhere", "namespace": "mine", "plugin": Plugin.PLANE}


def test_the_packages_own_section_is_taken_over_and_a_master_started() -> None:
    """Changing the backend's name alone is enough: the section ``MooncakeStore`` is used, and put and get work."""
    master, metadata = _free_ports()
    theirs = {"master_server_address": master, "metadata_server": metadata, "local_hostname": "127.0.0.1"}
    conf = _conf(MooncakeStore={**theirs, "global_segment_size": 64 << 20, "local_buffer_size": 32 << 20})
    system = start_mooncake(conf)
    try:
        section = conf.backend[MOONCAKE]
        assert (section.plugin, section.master_server_address) == (Plugin.MOONCAKE, master)
        client = PenstockMooncakeClient(section)
        places = client.put(["0@a", "0@b"], [torch.arange(3), None])
        assert client.get(["0@b"], custom_backend_meta=places[1:]) == [None]
        client.close()
        with pytest.raises(BadArgument, match=r"listens.*auto_init=False"):
            start_mooncake(_conf(PenstockMooncake=theirs))
    finally:
        system.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", int(master.rpartition(":")[2])))


def test_a_master_that_runs_is_left_alone(mooncake: MooncakeCluster) -> None:
    """With ``auto_init=False`` nothing is started and nothing ended: the master serves on."""
    conf = _conf(PenstockMooncake={"auto_init": False, "master_server_address": mooncake.master_address})
    system = start_mooncake(conf)
    system.close()
    assert mooncake.segments()
    assert conf.backend[MOONCAKE].namespace.startswith("tq-")


@pytest.mark.slow  # the suites show it every day, on a worker of Ray
def test_the_marker_imports_the_plug_in() -> None:
    """A process that only unpickles the configuration has the backends registered."""
    import cloudpickle  # type: ignore[import-untyped]

    conf = _conf(PenstockPlane={"data_dir": "/x"})
    start_plane(conf)
    code = """
import pickle, sys
conf = pickle.loads(sys.stdin.buffer.read())
from transfer_queue.storage.managers.base import StorageManagerFactory
print("PenstockPlane" in StorageManagerFactory._registry)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], input=cloudpickle.dumps(conf), capture_output=True, timeout=100, check=False
    )
    assert done.stdout == b"True\n", done.stderr


def test_registering_needs_the_package_it_was_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A TransferQueue without what the managers build upon is refused by name, with what to install."""
    from transfer_queue.storage.managers.base import StorageManager

    from penstock.compat.transfer_queue_storage import register

    register()
    register()
    monkeypatch.delattr(StorageManager, "_notify_and_wait")
    with pytest.raises(ImportError, match=r"no _notify_and_wait.*TransferQueue==0\.1\.11"):
        register()


def test_without_the_package_it_says_what_to_install() -> None:
    """Importing the plug-in where TransferQueue is missing is an ImportError that names the extra."""
    code = "import sys; sys.modules['transfer_queue'] = None; import penstock.compat.transfer_queue_storage"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert "pip install 'penstock[transferqueue]'" in done.stderr
