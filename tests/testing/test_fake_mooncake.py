"""The twin's own: faults that fire as they were told to, and misuse that is seen. Its quirks are in ``test_quirks``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from penstock.errors import BadArgument
from penstock.testing.fake_mooncake import FakeClient, FakeMooncake, Misuse
from penstock.testing.fake_mooncake_faults import Fault, add_replies, damage, drop_replies, fail, hang, late, throw
from tests.payload.stores.rigs import Board, get, put


@pytest.fixture
def fake() -> Iterator[FakeMooncake]:
    with FakeMooncake() as fake:
        yield fake


def connected(fake: FakeMooncake) -> FakeClient:
    client = fake.client()
    assert client.setup("host", "metadata", 0, 1 << 20, "tcp", "", fake.config().master) == 0
    return client


# -- faults -----------------------------------------------------------------------------------------------------------


def test_a_failure_hits_its_key_its_call_and_so_often(fake: FakeMooncake) -> None:
    """Others are untouched; a put that fails has removed the value that was there."""
    client = connected(fake)
    board = Board(client)
    assert [put(client, board, fake, key, b"v") for key in ("a", "b")] == [0, 0]
    fault = fake.inject(fail(-800, call="get", key="a", times=2))
    assert [get(client, board, key, 9) for key in ("a", "b", "a", "a")] == [-800, b"v", -800, b"v"]
    assert fault.fired == 2
    fake.inject(fail(-707, call="put", key="a"))
    assert put(client, board, fake, "a", b"w") == -707
    assert fake.keys() == ["b"]


def test_replies_can_be_too_short_and_too_long(fake: FakeMooncake) -> None:
    """One code less, two more; then as it should be."""
    client = connected(fake)
    fake.inject(drop_replies(call="exists"))
    fake.inject(add_replies(2, call="exists"))
    assert [len(client.batch_is_exist(["a", "b", "c"])) for _ in range(3)] == [2, 5, 3]


def test_damage_is_one_bit_and_success(fake: FakeMooncake) -> None:
    """On its way out the store's own is good; on its way in, and where it lies, it is bad for good."""
    client = connected(fake)
    board = Board(client)
    put(client, board, fake, "a", b"value")
    fake.inject(damage(call="get", key="a"))
    assert [get(client, board, "a", 9) for _ in range(2)] == [b"valud", b"value"]
    fake.inject(damage(call="put", key="b"))
    assert put(client, board, fake, "b", b"value") == 0
    assert get(client, board, "b", 9) == b"valud"
    fake.damage_stored("a", at=0)
    assert get(client, board, "a", 9) == b"walue"


def test_a_late_read_lands_in_memory_that_was_given_back(fake: FakeMooncake) -> None:
    """It was reported as failed; at ``land`` the bytes arrive where they were asked for, whatever is there by then."""
    client = connected(fake)
    board = Board(client)
    put(client, board, fake, "a", b"late!")
    fault = fake.inject(late(call="get", key="a"))
    assert get(client, board, "a", 9) == -800
    board.write(1, b"other")
    assert fault.land() == 1
    assert board.read(1, 5) == b"late!"
    assert fault.land() == 0


def test_a_late_write_lands_over_another_value(fake: FakeMooncake) -> None:
    """With what its memory holds by then, over what lies in its place by then."""
    client = connected(fake)
    board = Board(client)
    put(client, board, fake, "victim", b"victim")
    fault = fake.inject(late(call="put", key="a", onto="victim"))
    assert put(client, board, fake, "a", b"abc") == -800
    board.write(0, b"xyz")
    fault.land()
    assert get(client, board, "victim", 9) == b"xyztim"
    assert fake.keys() == ["victim"]


def test_a_call_hangs_until_it_is_released(fake: FakeMooncake) -> None:
    """The thread waits in the library; released, it goes on as if nothing had been."""
    client = connected(fake)
    fault = fake.inject(hang(call="exists"))
    answers: list[list[int]] = []
    thread = threading.Thread(target=lambda: answers.append(client.batch_is_exist(["a"])))
    thread.start()
    assert fault.entered.wait(10)
    assert answers == []
    assert client.batch_is_exist(["a"]) == [0]  # another thread is not held up
    fault.release()
    thread.join(10)
    assert answers == [[0]]


def test_setup_at_a_wrong_address_hangs_until_the_end(fake: FakeMooncake) -> None:
    """And a client whose setup failed is not open."""
    client = fake.client()
    codes: list[int] = []
    thread = threading.Thread(
        target=lambda: codes.append(client.setup("host", "metadata", 0, 0, "tcp", "", "elsewhere:1"))
    )
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    fake.close()
    thread.join(10)
    assert (codes, client.is_open) == ([-1], False)


def test_a_call_can_raise(fake: FakeMooncake) -> None:
    """As bindings do."""
    client = connected(fake)
    fake.inject(throw(MemoryError("no"), call="describe"))
    with pytest.raises(MemoryError, match="no"):
        client.batch_get_replica_desc(["a"])
    assert client.batch_get_replica_desc(["a"]) == {}


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: fail(0), id="success"),
        pytest.param(lambda: fail(-1, call="got"), id="unknown-call"),  # type: ignore[arg-type]
        pytest.param(lambda: hang(times=0), id="never"),
        pytest.param(lambda: late(call="exists"), id="late-question"),
    ],
)
def test_a_fault_that_cannot_be_is_refused(make: Callable[[], Fault]) -> None:
    """A failure that succeeds, an unknown call, no times at all, a late question."""
    with pytest.raises(BadArgument):
        make()


# -- misuse -----------------------------------------------------------------------------------------------------------


def test_memory_that_is_not_registered_is_misuse(fake: FakeMooncake) -> None:
    """For a transfer now, and for one that lands later; each is raised and remembered."""
    client = connected(fake)
    board = Board(client, pieces=2, nbytes=64)
    put(client, board, fake, "a", b"v" * 64)
    with pytest.raises(Misuse, match="registered"):
        client.batch_get_into(["a"], [board.at(1) + 1], [64])
    fault = fake.inject(late(call="get", key="a"))
    get(client, board, "a", 64)
    board.close()
    with pytest.raises(Misuse, match="registered"):
        fault.land()
    assert len(fake.misuses) == 2


@pytest.mark.parametrize(
    "call",
    [
        "get_hostname()",
        "register_buffer(1, 1)",
        "unregister_buffer(1)",
        "batch_put_from(['a'], [1], [1], None)",
        "batch_get_into(['a'], [1], [1])",
        "batch_get_replica_desc(['a'])",
        "batch_is_exist(['a'])",
        "batch_remove(['a'], True)",
    ],
)
def test_calls_that_the_real_client_does_not_survive(fake: FakeMooncake, call: str) -> None:
    """On a closed client, as seen on the real one: these end the process."""
    client = connected(fake)
    client.close()
    with pytest.raises(Misuse, match="SIGSEGV"):
        eval(f"client.{call}", {"client": client})
    assert len(fake.misuses) == 1


def test_calls_that_the_real_client_answers_when_closed(fake: FakeMooncake) -> None:
    """An upsert is -600, a byte getter ``b""``, a second close 0, and it can be set up again."""
    client = connected(fake)
    client.close()
    assert client.batch_upsert_from(["a"], [1], [1], fake.write_config("")) == [-600]
    assert (client.get("a"), client.close()) == (b"", 0)
    assert client.setup("host", "metadata", 0, 0, "tcp", "", fake.config().master) == 0
    assert fake.misuses == []


def test_memory_is_registered_once(fake: FakeMooncake) -> None:
    """A second time, or unregistering what is not, is -600; a fault can refuse it."""
    client = connected(fake)
    board = Board(client)
    assert client.register_buffer(board.at(0), 10) == -600
    board.close()
    assert client.unregister_buffer(board.at(0)) == -600
    fake.inject(fail(-600, call="register"))
    assert [client.register_buffer(board.at(0), 10) for _ in range(2)] == [-600, 0]


def test_what_is_asked_meanwhile_can_be_watched(fake: FakeMooncake) -> None:
    """Every call is noted with its keys, and a hook runs before it."""
    client = connected(fake)
    fake.on_call = lambda call, _keys: fake.evict("a") if call == "get" else None
    board = Board(client)
    put(client, board, fake, "a", b"v")
    assert get(client, board, "a", 9) == -704
    assert fake.calls == [("setup", ()), ("put", ("a",)), ("get", ("a",))]
    assert "0 keys, 0 misuses" in repr(fake)
