"""Hosts as network namespaces: what a cut cuts, and that nothing is left of them."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.errors import DataPlaneUnavailable
from penstock.testing import network as module
from penstock.testing.network import Host, Network, unavailable
from tests.leaks import wait_for

WHY_NOT = unavailable(threads=True)
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

PORT = 7000
WAIT_S = 0.5  # long enough for a packet between two namespaces; what is cut never comes
NOBODY_UID = 65534

ECHO = f"""
import socket
listener = socket.create_server(("0.0.0.0", {PORT}))
print("up", flush=True)
while True:
    line, _ = listener.accept()
    line.sendall(b"hello")
    line.close()
"""
DATAGRAMS = f"""
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("0.0.0.0", {PORT}))
print("up", flush=True)
while True:
    print(sock.recv(100).decode(), flush=True)
"""


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    with Network(tmp_path) as net:
        yield net


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder that others can reach; pytest's own are closed to them."""
    with tempfile.TemporaryDirectory(prefix="pt-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def ends() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Programs on hosts; they are ended with the test."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def serve(host: Host, code: str, ends: list[subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    process = host.start([sys.executable, "-c", code], stdout=subprocess.PIPE)
    ends.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


def greeted(client: Host, server: Host) -> bool:
    """Whether a TCP connection gets its greeting."""
    with client.entered():
        try:
            with socket.create_connection((server.address, PORT), timeout=WAIT_S) as line:
                return line.recv(10) == b"hello"
        except TimeoutError:
            return False


def say(sender: Host, receiver: Host, word: str) -> None:
    with sender.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(word.encode(), (receiver.address, PORT))


def heard(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def test_hosts_reach_each_other_and_nobody_else(network: Network, ends: list[subprocess.Popen[bytes]]) -> None:
    """Two hosts talk; the machine itself has no way to them, nor they to it; an uncut network swallows nothing."""
    a, b = network.host("a"), network.host("b")
    serve(b, ECHO, ends)
    assert greeted(a, b)
    assert greeted(b, b)
    assert network.swallowed == 0
    with a.entered():
        assert {name for _, name in socket.if_nameindex()} == {"lo", "eth0"}
    assert network.host("a") is a


def test_a_partition_is_silent_and_healed(network: Network, ends: list[subprocess.Popen[bytes]]) -> None:
    """Over a full cut nobody hears anything, refusals included, and the packets are counted; then all is as before."""
    a, b, c = (network.host(name) for name in "abc")
    serve(b, ECHO, ends)
    at_a = serve(a, DATAGRAMS, ends)
    network.partition("a", "b")
    before = network.swallowed
    assert not greeted(a, b)
    say(b, a, "is lost")
    assert network.swallowed > before
    assert greeted(c, b)
    network.heal("a", "b")
    assert greeted(a, b)
    say(b, a, "passes")
    assert heard(at_a) == "passes"


def test_a_cut_of_one_direction_leaves_the_other(network: Network, ends: list[subprocess.Popen[bytes]]) -> None:
    """What ``a`` says reaches ``b`` while nothing that ``b`` says reaches ``a``."""
    a, b = network.host("a"), network.host("b")
    at_a, at_b = serve(a, DATAGRAMS, ends), serve(b, DATAGRAMS, ends)
    network.partition("b", "a", one_way=True)
    say(a, b, "passes")
    say(b, a, "is lost")
    assert heard(at_b) == "passes"
    assert network.swallowed >= 1
    network.heal()
    say(b, a, "passes again")
    assert heard(at_a) == "passes again"


def test_an_open_connection_survives_a_cut(network: Network) -> None:
    """What was sent during a cut arrives after it: TCP sends it again."""
    a, b = network.host("a"), network.host("b")
    with b.entered():
        listener = socket.create_server((b.address, PORT))
    with a.entered():
        sender = socket.create_connection((b.address, PORT), timeout=10)
    with listener, sender, listener.accept()[0] as receiver:
        network.partition("a", "b")
        receiver.settimeout(WAIT_S)
        sender.sendall(b"late")
        with pytest.raises(TimeoutError):
            receiver.recv(10)
        network.heal()
        receiver.settimeout(30)
        assert receiver.recv(10) == b"late"


def test_a_pulled_cable_cuts_a_host_from_all(network: Network, ends: list[subprocess.Popen[bytes]]) -> None:
    """Without its cable a host reaches nobody; with it, all again."""
    a, b, c = (network.host(name) for name in "abc")
    serve(b, ECHO, ends)
    network.unplug("b")
    assert not greeted(a, b)
    assert not greeted(c, b)
    network.plug("b")
    assert greeted(a, b)
    assert greeted(c, b)


def test_a_connection_that_flaps_is_whole_in_the_end(network: Network, ends: list[subprocess.Popen[bytes]]) -> None:
    """It is cut again and again, and mended when it is over."""
    a, b = network.host("a"), network.host("b")
    serve(b, ECHO, ends)
    with network.flapping("a", "b", down_s=0.05, up_s=0.05) as flaps:
        wait_for(lambda: flaps.count >= 3)
    assert greeted(a, b)
    assert flaps.count >= 3


def test_a_process_enters_a_host_it_was_handed(network: Network) -> None:
    """A host can be handed to another process, which enters it; what was started before stays where it was."""
    a = pickle.loads(pickle.dumps(network.host("a")))
    seen: list[set[str]] = []

    def look() -> None:
        a.enter()
        seen.append({name for _, name in socket.if_nameindex()})

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [{"lo", "eth0"}]
    assert Path("/proc/thread-self/ns/net").readlink() != Path(f"/proc/{a.pid}/ns/net").readlink()


def test_a_host_that_is_gone_is_named(network: Network) -> None:
    """Entering a host after the network was taken down says so."""
    a = network.host("a")
    network.close()
    network.close()
    with pytest.raises(DataPlaneUnavailable, match="gone"):
        a.enter()


def test_a_killed_maker_leaves_nothing(tmp_path: Path) -> None:
    """SIGKILL of the process that made hosts ends them: nobody has to clean up."""
    code = (
        "import sys, time; from pathlib import Path; from penstock.testing.network import Network\n"
        "net = Network(Path(sys.argv[1])); print(net.host('a').pid, net.host('b').pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as maker:
        assert maker.stdout is not None
        keepers = [int(word) for word in maker.stdout.readline().split()]
        assert len(keepers) == 2
        os.kill(maker.pid, signal.SIGKILL)
        maker.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in keepers))


def test_without_rights_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where namespaces are not allowed the reason is told, not a stack of a tool's."""
    monkeypatch.setattr(module.Network, "_try_keeper", lambda *_: False)
    assert "no network namespaces" in str(unavailable())
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "/nowhere")
    assert "no network namespaces" in str(unavailable())


AS_NOBODY = f"""
import encodings.idna, os, socket, sys  # an encoding that is loaded at use, from where nobody may read
from pathlib import Path
from penstock.testing.network import Network

if os.geteuid() == 0:
    os.setgid({NOBODY_UID})
    os.setuid({NOBODY_UID})

def on(host, act):
    child = os.fork()
    if child == 0:
        host.enter()
        os._exit(act())
    return child

def serve():
    listener = socket.create_server(("0.0.0.0", {PORT}))
    os.write(ready, b"up")
    while True:
        listener.accept()[0].close()

def greet():
    try:
        socket.create_connection((b.address, {PORT}), timeout={WAIT_S})
    except TimeoutError:
        return 1
    return 0

def code(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

with Network(Path(sys.argv[1])) as net:
    a, b = net.host("a"), net.host("b")
    wait, ready = os.pipe()
    server = on(b, serve)
    os.read(wait, 2)
    told = [code(on(a, greet))]
    net.partition("a", "b")
    told += [code(on(a, greet))]
    os.kill(server, 9)
    code(server)
    print(a.with_users, told, flush=True)
"""


def test_a_user_without_root_has_hosts_too(short_folder: Path) -> None:
    """With user namespaces anybody can have a network: who enters its hosts is on them, and cuts cut."""
    if os.geteuid() == 0:
        os.chown(short_folder, NOBODY_UID, NOBODY_UID)
    argv = [sys.executable, "-c", AS_NOBODY, str(short_folder)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "True [0, 1]\n", done.stderr
