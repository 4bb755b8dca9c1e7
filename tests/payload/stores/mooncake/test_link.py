"""One connection, replaced as a whole."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from penstock.errors import DataPlaneUnavailable
from penstock.payload.stores.mooncake.link import MAX_STUCK, Link, Links
from penstock.payload.stores.mooncake.reach import Always
from penstock.retry import Deadline
from penstock.testing.fake_mooncake import FakeMooncake
from penstock.testing.fake_mooncake_faults import fail, hang
from tests.leaks import wait_for

SOON = 20.0


@pytest.fixture
def fake() -> Iterator[FakeMooncake]:
    with FakeMooncake() as made:
        yield made


@pytest.fixture
def links(fake: FakeMooncake) -> Iterator[Links]:
    made = Links(lambda: Link(fake, fake.config(), time.monotonic, Always()), 5.0)
    yield made
    fake.close()
    made.close(5.0)


def clients(fake: FakeMooncake) -> list[bool]:
    return [client.is_open for client in fake._clients]


def test_a_link_is_opened_once_and_lent_to_all(links: Links, fake: FakeMooncake) -> None:
    """Also when many ask at once."""
    got: list[Link | None] = []

    def use() -> None:
        with links.use(Deadline(SOON)) as link:
            got.append(link)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert len(got) == 8
    assert len(set(map(id, got))) == 1
    assert clients(fake) == [True]


def test_a_tainted_link_is_replaced_and_ends_with_its_last_user(links: Links, fake: FakeMooncake) -> None:
    """Its users keep it until they are done."""
    with links.use(Deadline(SOON)) as first:
        assert first is not None
        first.taint("a test says so")
        with links.use(Deadline(SOON)) as second:
            assert second is not None
            assert second is not first
        assert clients(fake) == [True, True]
        assert first.calls.one(first.client.register_buffer, 1, 1, deadline=Deadline(SOON)) == 0
    wait_for(lambda: clients(fake) == [False, True])
    assert links.replaced == 1


def test_a_link_that_is_stuck_is_closed_when_its_call_comes_back(links: Links, fake: FakeMooncake) -> None:
    """Never while the library is at work."""
    stuck = fake.inject(hang(call="exists"))
    with links.use(Deadline(SOON)) as link:
        assert link is not None
        job = link.calls.submit(link.client.batch_is_exist, ["k"])
        assert stuck.entered.wait(SOON)
        assert not job.wait(Deadline(0.01))
        link.taint("stuck")
    with links.use(Deadline(SOON)):
        assert clients(fake) == [True, True]
    stuck.release()
    wait_for(lambda: clients(fake) == [False, True])
    assert fake.misuses == []


def test_connections_that_are_stuck_are_not_heaped_up(links: Links, fake: FakeMooncake) -> None:
    """Beyond a few there is no new one before an old one has ended."""
    faults = []
    for _ in range(MAX_STUCK):
        with links.use(Deadline(SOON)) as link:
            assert link is not None
            faults.append(fake.inject(hang(call="exists")))
            job = link.calls.submit(link.client.batch_is_exist, ["k"])
            assert faults[-1].entered.wait(SOON)
            assert not job.wait(Deadline(0.01))
            link.taint("stuck")
    with links.use(Deadline(SOON)) as link:
        assert link is None
    assert "stuck" in links.trouble
    faults[0].release()

    def has_one() -> bool:
        with links.use(Deadline(SOON)) as link:
            return link is not None

    wait_for(has_one)


def test_a_setup_that_is_refused_is_no_link(links: Links, fake: FakeMooncake) -> None:
    """With the reason; the next one may succeed."""
    fake.inject(fail(-900, call="setup"))
    with links.use(Deadline(SOON)) as link:
        assert link is None
    assert "-900" in links.trouble
    with links.use(Deadline(SOON)) as link:
        assert link is not None


def test_a_client_without_memory_is_no_link(links: Links, fake: FakeMooncake) -> None:
    """It could move nothing."""
    fake.inject(fail(-600, call="register"))
    with links.use(Deadline(SOON)) as link:
        assert link is None
    assert "-600" in links.trouble


def test_a_setup_that_hangs_ends_at_the_deadline(links: Links, fake: FakeMooncake) -> None:
    """Of the caller; what is opened goes on being opened, and the next one finds it."""
    hanging = fake.inject(hang(call="setup"))
    began = time.monotonic()
    for _ in range(10):  # none of them has the time: they wait for one and the same opening
        with links.use(Deadline(0.01)) as link:
            assert link is None
    assert time.monotonic() - began < SOON / 2
    assert hanging.entered.is_set()
    hanging.release()
    with links.use(Deadline(SOON)) as link:
        assert link is not None
    assert len(links.links()) == 1


def test_a_setup_that_hangs_for_too_long_is_given_up(fake: FakeMooncake) -> None:
    """It leaves its thread behind, counted, and whoever waits is told that there is no link."""
    links = Links(lambda: Link(fake, fake.config(), time.monotonic, Always()), 0.1)
    fake.inject(hang(call="setup"))
    with links.use(Deadline(SOON)) as link:
        assert link is None
    assert len(links.links()) == 1
    links.close(0.05)


def test_closed_links_are_lent_to_nobody(links: Links) -> None:
    """Closing twice is closing once."""
    with links.use(Deadline(SOON)):
        pass
    assert links.close(SOON)
    assert links.close(SOON)
    with pytest.raises(DataPlaneUnavailable, match="closed"), links.use(Deadline(SOON)):
        pass


def test_close_says_when_a_call_is_stuck(links: Links, fake: FakeMooncake) -> None:
    """It does not wait for it beyond its time."""
    stuck = fake.inject(hang(call="exists"))
    with links.use(Deadline(SOON)) as link:
        assert link is not None
        link.calls.submit(link.client.batch_is_exist, ["k"])
        assert stuck.entered.wait(SOON)
    assert not links.close(0.05)
    assert fake.misuses == []


def test_a_registering_that_hangs_ends_with_the_callers_deadline(links: Links, fake: FakeMooncake) -> None:
    """And costs the connection: nobody knows what it has registered."""
    with links.use(Deadline(SOON)) as link:
        assert link is not None
        everything = link.pool.take([link.pool.memory_bytes], Deadline(SOON))
        assert everything is not None
        stuck = fake.inject(hang(call="register"))
        began = time.monotonic()
        assert link.pool.take([1 << 20], Deadline(0.05)) is None
        assert time.monotonic() - began < 5.0
        assert stuck.fired == 1
        assert link.tainted
