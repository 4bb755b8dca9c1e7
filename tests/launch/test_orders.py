"""What is launched: arguments that cannot be are refused before anything starts, the others become command lines."""

from __future__ import annotations

import random
import socket
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.config import PlaneConfig
from penstock.errors import BadArgument, DataPlaneUnavailable
from penstock.launch.orders import HostOrders, PlaneOrders, actor_name, free_port, options_of
from penstock.launch.ray import _options
from penstock.ops.serve import plane_config

WHERE: dict[str, Any] = {"name": "run7", "namespace": "n", "node": "10.0.0.1", "data_dir": "/data/run7"}


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"name": ""}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": "a" * 65}, "name"),
        ({"data_dir": "run7"}, "absolute"),
        ({"port": -1}, "port"),
        ({"port": 65536}, "port"),
        ({"tls_cert": "/x.pem"}, "TLS"),
        ({"hosts": HostOrders(tls_ca="/ca.pem")}, "TLS"),
    ],
)
def test_orders_that_make_no_sense_are_refused(wrong: dict[str, object], word: str) -> None:
    """Each by the word that says which."""
    with pytest.raises(BadArgument, match=word):
        PlaneOrders(**(WHERE | wrong))


def test_a_plane_is_served_as_by_hand() -> None:
    """At the port that was chosen, IPv6 in brackets; without any secret."""
    orders = PlaneOrders(**WHERE, plane={"durability": "memory", "max_rows": 5})
    assert orders.serve(20000) == [
        *["serve", "--data-dir", "/data/run7/plane", "--listen", "10.0.0.1:20000"],
        *["--durability", "memory", "--set", "max_rows=5"],
    ]
    six = msgspec.structs.replace(orders, node="fd00::1", plane={})
    assert six.serve(1)[-1] == "[fd00::1]:1"
    assert six.host_dir("fd00::1") == Path("/data/run7/hosts/fd00--1")


def test_a_host_is_served_as_by_hand() -> None:
    """With its node's address, below its node's folder; TLS where it was given."""
    hosts = HostOrders(max_bytes=7, tls_ca="/ca", tls_cert="/c", tls_key="/k", options={"warm_bytes": 3})
    orders = PlaneOrders(**WHERE, tls_cert="/p", hosts=hosts)
    assert orders.host("10.0.0.2", "penstock://10.0.0.1:20000", Path("/t")) == [
        *["host", "--plane", "penstock://10.0.0.1:20000", "--token-file", "/t", "--dir", "/data/run7/hosts/10.0.0.2"],
        *["--address", "10.0.0.2", "--name", "10.0.0.2", "--listeners", "2", "--ucx-listeners", "0"],
        *["--max-bytes", "7", "--set", "warm_bytes=3", "--tls-ca", "/ca", "--tls-cert", "/c", "--tls-key", "/k"],
    ]


def test_options_come_back_as_they_were() -> None:
    """Whatever differs from the defaults crosses the command line: numbers, nothing, words and URLs."""
    config = PlaneConfig(
        durability="memory", max_bytes=10**12, partition_max_rows=9, heartbeat_s=0.5, store="mooncake://h:1?a=b&c=d"
    )
    words = options_of(_options(config))
    durability = words[words.index("--durability") + 1]
    assignments = [word for before, word in pairwise(words) if before == "--set"]
    assert plane_config(durability, assignments) == config
    assert _options(None) == {}
    assert _options({"max_rows": 3}) == {"max_rows": 3}


@pytest.mark.parametrize("wrong", [{"max_row": 1}, {"max_rows": "many"}, {"max_rows": -1}])
def test_an_unknown_or_senseless_option_is_refused_here(wrong: dict[str, object]) -> None:
    """Not by a process on another machine, a minute later."""
    with pytest.raises(BadArgument, match="max_row"):
        _options(wrong)


def test_a_free_port_is_none_that_connections_are_given() -> None:
    """Below Linux's own range, so that it is still free when the plane comes back to it."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    port = free_port("127.0.0.1", random.Random(1))
    assert 20_000 <= port < lowest
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen()
        assert free_port("127.0.0.1", random.Random(1)) != port
    assert free_port("::1", random.Random(1)) > 0


def test_a_port_elsewhere_cannot_be_had() -> None:
    """The address is not this machine's: the error says so."""
    with pytest.raises(DataPlaneUnavailable, match=r"192\.0\.2\.77"):
        free_port("192.0.2.77", random.Random(1))


def test_names_of_actors_tell_plane_and_node() -> None:
    """A prefix finds the agents of one plane, and of no other whose name begins alike."""
    assert actor_name("a") == "penstock/a/plane"
    assert actor_name("a", "10.0.0.1").startswith(actor_name("a", ""))
    assert not actor_name("ab", "10.0.0.1").startswith(actor_name("a", ""))
