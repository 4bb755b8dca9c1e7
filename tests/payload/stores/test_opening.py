"""A store by its URL."""

from __future__ import annotations

import time

import pytest

from penstock.errors import BadArgument, DataPlaneUnavailable
from penstock.payload.stores.contract import Missing, Ok
from penstock.payload.stores.mooncake.store import MooncakeStore
from penstock.payload.stores.opening import open_store, url_of
from penstock.retry import Deadline
from penstock.testing.mooncake import MooncakeCluster

GONE = "metadata=http://127.0.0.1:1/metadata&open_timeout_s=0.2"


def test_memory_stores_of_one_name_are_one_store() -> None:
    """And those of another name are another."""
    deadline = Deadline(5.0)
    with open_store("memory://one") as first, open_store("memory://one") as second, open_store("memory://two") as third:
        assert first.put_many(["k"], [b"v"], deadline) == [Ok(nbytes=1)]
        assert isinstance(second.get_many(["k"], None, deadline)[0], Ok)
        assert third.get_many(["k"], None, deadline) == [Missing()]


@pytest.mark.parametrize("url", ["redis://x", "", "mooncak", "memory"])
def test_an_unknown_kind_is_refused_with_those_known(url: str) -> None:
    """A store that nobody has written; memory without a name is nobody's either."""
    if url == "memory":
        open_store(url).close()
        return
    with pytest.raises(BadArgument, match=r"memory://, mooncake://"):
        open_store(url)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (f"mooncake://127.0.0.1:1?{GONE}&replica=2", "replicas"),
        (f"mooncake://127.0.0.1:1?{GONE}&replicas=3", "replicas"),
        (f"mooncake://127.0.0.1:1?{GONE}&replicas=two", "replicas"),
        (f"mooncake://127.0.0.1:1?{GONE}&local_buffer=lots", "local_buffer"),
        (f"mooncake://127.0.0.1:1?{GONE}&replicas=1&replicas=2", "twice"),
        (f"mooncake://127.0.0.1:99999?{GONE}", "HOST:PORT"),
        (f"mooncake://user@127.0.0.1:1?{GONE}", "KIND://"),
        (f"mooncake://127.0.0.1:1/path?{GONE}", "KIND://"),
        ("memory://m?size=3", "size"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(url: str, told: str) -> None:
    """In words that name it, before anything is connected."""
    with pytest.raises(BadArgument, match=told):
        open_store(url)


def test_a_store_that_is_not_there_is_told_within_its_time() -> None:
    """With its address and the reason."""
    began = time.monotonic()
    with pytest.raises(DataPlaneUnavailable, match=r"127\.0\.0\.1:1 .*refused"):
        open_store(f"mooncake://127.0.0.1:1?{GONE}")
    assert time.monotonic() - began < 5.0


def test_settings_of_the_url_and_options_reach_the_store(mooncake: MooncakeCluster) -> None:
    """Sizes in words; an option wins over the URL."""
    url = f"{mooncake.url}&local_buffer=48MiB&replicas=2&chunk_keys=7"
    with open_store(url, chunk_keys=9) as store:
        assert isinstance(store, MooncakeStore)
        config = store.config
        assert (config.local_buffer, config.replicas, config.chunk_keys) == (48 << 20, 2, 9)
        assert config.master == mooncake.master_address
        assert store.put_many(["opening/k"], [b"v"], Deadline(10.0)) == [Ok(nbytes=1)]
        assert store.remove_many(["opening/k"], Deadline(10.0)) == [Ok()]


def test_a_kind_alone_is_the_store_of_this_machine() -> None:
    """Where there is one; a URL stays what it is, and of other kinds the name is asked for."""
    assert url_of("mooncake") == "mooncake://127.0.0.1:50051"
    assert url_of("mooncake://10.0.0.5:1?replicas=2") == "mooncake://10.0.0.5:1?replicas=2"
    assert url_of("memory://one") == "memory://one"
    with pytest.raises(BadArgument, match="which memory store"):
        url_of("memory")
    with pytest.raises(BadArgument, match=r"unknown store 's3'; known: memory://, mooncake://"):
        url_of("s3")
