"""One door to every adapter, and the public names behind it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import penstock
from penstock.config import ClientConfig, PlaneConfig
from penstock.errors import BadArgument, MissingExtra
from penstock.plane import local, remote
from penstock.plane.connect import _split, connect
from penstock.plane.noop import NoOpDataPlaneClient
from penstock.wire.auth import new_token

from .certificates import certificate


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the local adapter was asked for, instead of a plane."""
    made: list[Any] = []

    def build(data_dir: Path | None = None, *, config: ClientConfig, plane: PlaneConfig) -> NoOpDataPlaneClient:
        made.append((data_dir, config, plane))
        return NoOpDataPlaneClient()

    monkeypatch.setattr(local, "LocalDataPlaneClient", build)
    return made


def test_noop_is_a_plane_in_memory() -> None:
    """connect("noop") gives the reference model, with the options it was given."""
    with connect("noop", strict_tensors=False, timeout_s=5) as client:
        assert isinstance(client, NoOpDataPlaneClient)
        client.register_partition("p", ["x"], 1, ["t"])
        client.put_samples(["a"], "p", {"x": ["text"]})


def test_local_is_the_default(built: list[Any]) -> None:
    """connect() gives the embedded engine with default configuration; options are split by who knows them."""
    connect()
    connect("local", data_dir="/tmp/run", timeout_s=3, owner="me", max_rows=10)
    connect({"impl": "local", "durability": "memory", "owner": "a", "enabled": True}, owner="b")
    assert built[0] == (None, ClientConfig(), PlaneConfig())
    assert built[1] == ("/tmp/run", ClientConfig(timeout_s=3.0, owner="me"), PlaneConfig(max_rows=10))
    assert built[2] == (None, ClientConfig(owner="b"), PlaneConfig(durability="memory"))


@pytest.mark.parametrize("url", ["redis", "", "ftp://host", 7, None, {"impl": "nope"}])
def test_unknown_implementations_list_the_known(url: Any) -> None:
    """What is not known is a ValueError that lists what is."""
    with pytest.raises(BadArgument, match=r"known: \['local', 'noop', 'penstock://', 'transferqueue://'\]") as caught:
        connect(url)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"integrity": "off"}, "integrity"),
        ({"replicas": 2}, "replicas"),
        ({"durability": "process"}, "durability"),
        ({"start": "yes"}, "start"),
        ({"settings": 3}, "settings"),
        ({"data_dir": "/tmp/x"}, "data_dir"),
    ],
)
def test_what_a_transfer_queue_cannot_do_is_refused_before_it_is_asked(options: dict[str, Any], named: str) -> None:
    """Options that would have no effect on a TransferQueue are refused by name."""
    with pytest.raises(BadArgument, match=named):
        connect("transferqueue://", **options)


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the adapter of several hosts was asked for, instead of a plane."""
    made: list[Any] = []

    def build(url: str, token: bytes, **options: Any) -> NoOpDataPlaneClient:
        made.append((url, token, options))
        return NoOpDataPlaneClient()

    monkeypatch.setattr(remote, "RemoteDataPlaneClient", build)
    return made


def test_a_url_is_a_plane_of_several_hosts(far: list[Any], tmp_path: Path) -> None:
    """The token is read from its file; the rest is the client's."""
    token = new_token(tmp_path / "token")
    connect("penstock://node-1:7777", token_file=tmp_path / "token", host_dir="/data/host", replicas=2, owner="me")
    config = ClientConfig(replicas=2, owner="me")
    assert far == [("penstock://node-1:7777", token, {"host_dir": "/data/host", "tls": None, "config": config})]


def test_tls_ca_is_read_before_anything_is_dialled(far: list[Any], tmp_path: Path) -> None:
    """A file that is no certificate is named; one that is makes a context that wants the dialled name."""
    new_token(tmp_path / "token")
    with pytest.raises(BadArgument, match="cannot be used"):
        connect("penstock://node-1:7777", token_file=tmp_path / "token", tls_ca=__file__)
    connect("penstock://node-1:7777", token_file=tmp_path / "token", tls_ca=certificate(tmp_path)[0])
    assert far[0][2]["tls"].check_hostname


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("penstock://node-1:7777", {}, "needs token_file="),
        ("penstock://node-1:7777", {"token_file": "/nowhere/token"}, "/nowhere/token"),
        ("penstock://node-1:7777", {"token_file": "t", "durability": "memory"}, "penstock serve"),
        ("penstock://node-1:7777", {"token_file": "t", "data_dir": "/data"}, "data_dir"),
        ("penstock://node-1:7777", {"token_file": "t", "replicas": 3}, "replicas"),
        ("penstock://node-1", {"token_file": "t"}, "HOST:PORT"),
        ("penstock://t0ken@node-1:7777", {"token_file": "t"}, "token_file="),
    ],
)
def test_what_a_url_cannot_take_is_named(far: list[Any], url: str, options: dict[str, Any], words: str) -> None:
    """Before anything is dialled; a secret in the URL is not repeated."""
    with pytest.raises(BadArgument, match=words) as caught:
        connect(url, **options)
    assert "t0ken" not in str(caught.value)
    assert far == []


def test_a_disabled_plane_is_refused() -> None:
    """A configuration with enabled=False is a ValueError that lists the known implementations."""
    with pytest.raises(ValueError, match=r"disabled.*known"):
        connect({"impl": "noop", "enabled": False})


@pytest.mark.parametrize("impl", ["local", "noop"])
@pytest.mark.parametrize("timeout_s", [float("nan"), float("inf"), -1.0])
def test_a_default_deadline_is_finite(impl: str, timeout_s: float) -> None:
    """It is refused before a plane is started, not at each call."""
    with pytest.raises(BadArgument, match="timeout_s must be finite"):
        connect(impl, timeout_s=timeout_s)


@pytest.mark.parametrize("options", [{"tmeout_s": 1}, {"timeout_s": "soon"}, {"data_dir": "/tmp/x"}])
def test_unknown_options_are_named(options: dict[str, Any]) -> None:
    """An option that nobody knows, or of the wrong type, is a ValueError that names it."""
    with pytest.raises(BadArgument, match=next(iter(options))):
        connect("noop", **options)


def test_a_store_that_is_none_is_refused_before_a_plane_is_started() -> None:
    """By name, with those known; a kind alone means the store of this machine, which the plane is told."""
    with pytest.raises(BadArgument, match=r"unknown store 's3'; known: memory://, mooncake://"):
        connect("local", store="s3")
    _, plane = _split({"store": "mooncake"}, "local")
    assert plane.store == "mooncake://127.0.0.1:50051"


def test_missing_torch_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch the error is an ImportError with the command that helps."""
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"pip install 'penstock\[torch\]'") as caught:
        connect("noop")
    assert isinstance(caught.value, ImportError)


def test_public_names_are_few_and_all_there() -> None:
    """At most 25 names, each of which can be had, and no other."""
    assert len(penstock.__all__) <= 25
    assert [name for name in penstock.__all__ if not hasattr(penstock, name)] == []
    assert set(penstock.__all__) <= set(dir(penstock))
    assert penstock.connect is connect
    with pytest.raises(AttributeError, match="nonsense"):
        penstock.nonsense  # noqa: B018


def test_importing_penstock_imports_no_torch() -> None:
    """import penstock is cheap; the contract and connect need no torch either."""
    code = (
        "import sys, penstock; penstock.connect; penstock.DataPlaneClient; penstock.KVBatchMeta; penstock.LeaseLost;"
        "sys.exit(bool({'torch', 'tensordict', 'numpy.testing'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
    assert torch.is_tensor(torch.ones(1))
