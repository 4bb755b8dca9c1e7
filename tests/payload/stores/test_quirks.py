"""Mooncake Store as it is, seen on the real one and on the twin: what the store above it must never believe."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, TypeAlias, cast

import pytest

from penstock.payload.stores.mooncake.library import installed
from penstock.testing.fake_mooncake import FakeMooncake, Misuse
from penstock.testing.mooncake import MooncakeCluster
from tests.leaks import wait_for
from tests.mooncake_fixture import StartMooncake
from tests.payload.stores.rigs import MIB, Clock, FakeRig, RealRig, Rig, get, put, segments_of

StartRig: TypeAlias = Callable[..., Rig]
SIGSEGV = -11


def fake_rig(**options: Any) -> FakeRig:
    clock = Clock()
    capacity = options.pop("segment_bytes", 64 * MIB)
    return FakeRig(FakeMooncake([capacity] * options.pop("owners", 2), clock=clock, **options), clock)


@pytest.fixture(params=["fake", "real"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def shared_rig(mooncake: MooncakeCluster) -> Iterator[RealRig]:
    """With clients that all tests share: the real library takes a second to close one."""
    rig = RealRig(mooncake)
    yield rig
    rig.close()


@pytest.fixture
def rig(kind: str, request: pytest.FixtureRequest) -> Iterator[Rig]:
    """One that nothing is done to but calls; the real one is everybody's: keys are of one test."""
    if kind == "fake":
        yield fake_rig()
        return
    real: RealRig = request.getfixturevalue("shared_rig")
    yield real
    real.forget_boards()


@pytest.fixture
def start_rig(kind: str, mooncakes: StartMooncake) -> Iterator[StartRig]:
    """One of the test's own, to be broken."""
    with ExitStack() as stack:

        def start(**options: Any) -> Rig:
            if kind == "fake":
                return fake_rig(**options)
            real = RealRig(mooncakes(**{"owners": 2} | options))
            stack.callback(real.close)
            return real

        yield start


# -- what a reply means -----------------------------------------------------------------------------------------------


def test_the_byte_getter_says_nothing_about_what_went_wrong(rig: Rig) -> None:
    """``get`` of a missing key is ``b""``, as is everything else that fails: it cannot be told from an empty value."""
    assert rig.connect().get("quirk/none") == b""


def test_the_byte_getter_loses_values_that_do_not_fit_its_buffer(rig: Rig) -> None:
    """A ``get_batch`` of more than the local buffer answers ``b""`` for values that are there."""
    client = rig.connect(local_buffer=16 * MIB)
    board = rig.board(client, pieces=2, nbytes=MIB)
    keys = [f"quirk/big{n}" for n in range(40)]
    assert {put(client, board, rig.library, key, b"x" * MIB) for key in keys} == {0}
    values = client.get_batch(keys)
    assert b"" in values
    assert set(client.batch_is_exist(keys)) == {1}
    client.batch_remove(keys, True)


def test_a_get_answers_the_bytes_moved(rig: Rig) -> None:
    """The code of a get is the value's length: a larger memory is accepted, a smaller one is -600."""
    client = rig.connect()
    board = rig.board(client)
    assert put(client, board, rig.library, "quirk/length", b"12345") == 0
    assert client.batch_get_into(["quirk/length"] * 1, [board.at(1)], [4096]) == [5]
    assert board.read(1, 6) == b"12345\0"
    assert client.batch_get_into(["quirk/length"], [board.at(1)], [4]) == [-600]


def test_of_a_key_named_twice_only_one_is_fetched(rig: Rig) -> None:
    """A get that names a key twice reports two successes; the earlier memory was never written."""
    client = rig.connect()
    board = rig.board(client)
    assert put(client, board, rig.library, "quirk/twice", b"value") == 0
    board.write(1, b"-----")
    board.write(2, b"-----")
    assert client.batch_get_into(["quirk/twice"] * 2, [board.at(1), board.at(2)], [5, 5]) == [5, 5]
    assert [board.read(1, 5), board.read(2, 5)] == [b"-----", b"value"]


def test_a_missing_key_is_left_out_of_the_description(rig: Rig) -> None:
    """``batch_get_replica_desc`` has no entry for what is missing: its reply is shorter than the question."""
    client = rig.connect()
    board = rig.board(client)
    assert put(client, board, rig.library, "quirk/there", b"v") == 0
    assert list(client.batch_get_replica_desc(["quirk/absent", "quirk/there"])) == ["quirk/there"]
    assert client.batch_is_exist(["quirk/absent", "quirk/there", "quirk/absent"]) == [0, 1, 0]
    assert get(client, board, "quirk/absent", 9) == -704


# -- what can be put --------------------------------------------------------------------------------------------------


def test_an_empty_value_cannot_be_stored(rig: Rig) -> None:
    """A value of no bytes is -600; those beside it are stored, with one code each."""
    client = rig.connect()
    board = rig.board(client)
    board.write(0, b"v")
    config = rig.library.write_config("")
    assert client.batch_upsert_from(["quirk/e", "quirk/v"], [board.at(0)] * 2, [0, 1], config) == [-600, 0]
    assert client.batch_is_exist(["quirk/e", "quirk/v"]) == [0, 1]


def test_a_put_of_a_key_that_is_there_writes_nothing_and_succeeds(rig: Rig) -> None:
    """``batch_put_from`` over an existing key is 0 and the old value stays: only upsert writes."""
    client = rig.connect()
    board = rig.board(client)
    assert put(client, board, rig.library, "quirk/put", b"old") == 0
    address, nbytes = board.write(0, b"newer")
    assert client.batch_put_from(["quirk/put"], [address], [nbytes], rig.library.write_config("")) == [0]
    assert get(client, board, "quirk/put", 99) == b"old"
    assert put(client, board, rig.library, "quirk/put", b"newer") == 0
    assert get(client, board, "quirk/put", 99) == b"newer"


def test_a_preferred_segment_is_a_wish(rig: Rig) -> None:
    """A segment that is preferred and not there is no error: the value lies elsewhere."""
    client = rig.connect()
    board = rig.board(client)
    assert put(client, board, rig.library, "quirk/wish", b"v", "127.0.0.1:1") == 0
    assert set(segments_of(client, "quirk/wish")) <= set(rig.segments())
    chosen = rig.owner(1)
    assert put(client, board, rig.library, "quirk/granted", b"v", chosen) == 0
    assert list(segments_of(client, "quirk/granted")) == [chosen]


def test_long_and_foreign_keys_are_accepted(rig: Rig) -> None:
    """512 bytes and any letters make a key; an empty one is -600."""
    client = rig.connect()
    board = rig.board(client)
    for key in ("quirk/" + "k" * 506, "quirk/ключ ü\n"):
        assert put(client, board, rig.library, key, b"v") == 0
        assert get(client, board, key, 9) == b"v"
    assert put(client, board, rig.library, "", b"v") == -600


# -- leases -----------------------------------------------------------------------------------------------------------


def test_what_was_read_cannot_be_removed_without_force(rig: Rig) -> None:
    """A value that somebody asked for a moment ago is leased, -706; ``force`` removes it; gone is -704."""
    client = rig.connect()
    board = rig.board(client)
    for key in ("quirk/a", "quirk/b"):
        assert put(client, board, rig.library, key, b"v") == 0
    assert client.batch_is_exist(["quirk/a"]) == [1]
    assert client.batch_remove(["quirk/a", "quirk/b"], False) == [-706, 0]
    assert client.batch_remove(["quirk/a", "quirk/a", "quirk/none"], True) == [0, -704, -704]


# -- room -------------------------------------------------------------------------------------------------------------


def test_a_full_store_says_so_and_a_put_that_fails_takes_the_old_value_along(start_rig: StartRig) -> None:
    """Hard-pinned values are not evicted: -200. A larger upsert of a key that then fails has deleted its old value."""
    rig = start_rig(owners=1, segment_bytes=16 * MIB)
    client = rig.connect()
    board = rig.board(client, pieces=2, nbytes=2 * MIB)
    assert [put(client, board, rig.library, f"k{n}", b"x" * MIB) for n in range(18)] == [0] * 16 + [-200] * 2
    assert client.batch_is_exist([f"k{n}" for n in range(16)]) == [1] * 16
    assert put(client, board, rig.library, "k1", b"y" * MIB) == 0  # of the same length: where it lies
    assert put(client, board, rig.library, "k1", b"z" * 2 * MIB) == -200
    assert client.batch_is_exist(["k0", "k1"]) == [1, 0]


def test_by_default_values_go_in_silence(start_rig: StartRig) -> None:
    """With Mooncake's own settings puts succeed and others' values disappear; hard-pinned ones stay."""
    rig = start_rig(owners=1, evicting=True)
    client = rig.connect()
    board = rig.board(client, pieces=2, nbytes=MIB)
    assert put(client, board, rig.library, "pinned", b"x") == 0
    loose = rig.library.write_config("")
    if isinstance(rig, FakeRig):
        loose = type(loose)(with_hard_pin=False)
    else:
        loose.with_hard_pin = False
    address, nbytes = board.write(0, b"x" * MIB)
    codes = [client.batch_upsert_from([f"k{n}"], [address], [nbytes], loose)[0] for n in range(120)]

    def survivors() -> int:
        return sum(client.batch_is_exist([f"k{n}" for n in range(120)]))

    assert survivors() < codes.count(0)
    assert client.batch_is_exist(["pinned"]) == [1]


# -- death ------------------------------------------------------------------------------------------------------------


def test_a_dead_owners_values_fail_until_the_master_stops_believing_in_it(start_rig: StartRig) -> None:
    """Owner killed: -800 although the key "exists", then -704; other segments serve on, and values are placed there."""
    rig = start_rig(owners=2, client_ttl_s=2)
    client = rig.connect()
    board = rig.board(client)
    dead, alive = rig.owner(0), rig.owner(1)
    assert put(client, board, rig.library, "a", b"v", dead) == 0
    assert put(client, board, rig.library, "old", b"v", dead) == 0
    assert put(client, board, rig.library, "b", b"v", alive) == 0
    rig.kill_owner(0)
    assert client.batch_get_into(["a", "b"], [board.at(1), board.at(2)], [9, 9]) == [-800, 1]
    assert client.batch_is_exist(["a", "b"]) == [1, 1]
    assert put(client, board, rig.library, "c", b"v", dead) == -800
    assert put(client, board, rig.library, "old", b"w", alive) == -800  # written over where it lay: deleted by it
    assert client.batch_is_exist(["c", "old"]) == [0, 0]
    rig.until_unmounted(dead)
    assert get(client, board, "a", 9) == -704
    assert put(client, board, rig.library, "c", b"v", dead) == 0
    assert list(segments_of(client, "c")) == [alive]


@pytest.mark.parametrize("kind", ["fake", pytest.param("real", marks=pytest.mark.slow)])
def test_a_restarted_master_has_forgotten_everything(start_rig: StartRig) -> None:
    """Master down: -900, and a description without a word; restarted: every key is missing, and puts work."""
    rig = start_rig()
    client = rig.connect()
    board = rig.board(client)
    assert {put(client, board, rig.library, key, b"v") for key in ("a", "b")} == {0}
    rig.kill_master()
    assert client.batch_get_replica_desc(["a", "b"]) == {}
    assert client.batch_is_exist(["a", "b"]) == [-900, -900]
    rig.restart_master()
    wait_for(lambda: client.batch_is_exist(["a"]) == [0], 30.0)
    assert [get(client, board, key, 9) for key in ("a", "b")] == [-704, -704]
    wait_for(lambda: put(client, board, rig.library, "a", b"v") == 0, 30.0)


_HALF = """
import sys
import numpy as np
from penstock.payload.stores.mooncake.library import installed
library = installed()
client = library.client()
assert client.setup("127.0.0.1", sys.argv[1], 0, 1 << 24, "tcp", "", sys.argv[2]) == 0
memory = np.ones(1 << 20, np.uint8)
client.register_buffer(memory.ctypes.data, memory.nbytes)
print("writing", flush=True)
client.batch_upsert_from(["half"], [memory.ctypes.data], [memory.nbytes], library.write_config(""))
"""


def leave_half(rig: Rig, probe: Callable[[], int]) -> None:
    """Have a writer die in the middle of a put."""
    if isinstance(rig, FakeRig):
        rig.fake.half_write("half", MIB)
        return
    cluster = cast("RealRig", rig).cluster
    cluster.pause_owner(0)
    argv = [sys.executable, "-c", _HALF, cluster.metadata_url, cluster.master_address]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as writer:
        wait_for(lambda: probe() == -703, 30.0)
        writer.kill()
    cluster.resume_owner(0)


def test_a_half_written_value_is_not_missing_but_looks_so(start_rig: StartRig) -> None:
    """A writer died in the middle: a get says -703; the description and the question whether it exists say nothing."""
    rig = start_rig(owners=1, client_ttl_s=20)
    client = rig.connect()
    board = rig.board(client)

    def probe() -> int:
        return int(client.batch_get_into(["half"], [board.at(1)], [4096])[0])

    leave_half(rig, probe)
    assert probe() == -703
    assert client.batch_get_replica_desc(["half"]) == {}
    assert client.batch_is_exist(["half"]) == [0]
    assert put(client, board, rig.library, "half", b"whole") == 0
    assert get(client, board, "half", 9) == b"whole"


_CLOSED = """
import sys
from penstock.payload.stores.mooncake.library import installed
client = installed().client()
assert client.setup("127.0.0.1", sys.argv[1], 0, 1 << 24, "tcp", "", sys.argv[2]) == 0
client.close()
print("closed", flush=True)
client.batch_is_exist(["a"])
"""


def test_a_call_after_close_ends_the_process(mooncake: MooncakeCluster) -> None:
    """The real library dies of SIGSEGV; the twin says that it would have."""
    argv = [sys.executable, "-c", _CLOSED, mooncake.metadata_url, mooncake.master_address]
    ended = subprocess.run(argv, capture_output=True, timeout=60, check=False)
    assert (ended.stdout, ended.returncode) == (b"closed\n", SIGSEGV)
    fake = FakeMooncake()
    client = fake.client()
    with pytest.raises(Misuse, match="SIGSEGV"):
        client.batch_is_exist(["a"])
    assert len(fake.misuses) == 1


_WRONG = """
import sys
from penstock.payload.stores.mooncake.library import installed
print("asking", flush=True)
installed().client().setup("127.0.0.1", sys.argv[1], 0, 1 << 24, "tcp", "", "127.0.0.1:1")
print("answered", flush=True)
"""


def test_a_wrong_address_is_tried_for_minutes(mooncake: MooncakeCluster) -> None:
    """``setup`` with nobody at the master's address does not come back for a long time: 2 s are waited here."""
    argv = [sys.executable, "-c", _WRONG, mooncake.metadata_url]
    with pytest.raises(subprocess.TimeoutExpired) as hung:
        subprocess.run(argv, capture_output=True, timeout=2, check=False)
    assert hung.value.stdout == b"asking\n"


def test_the_real_thing_has_every_call_that_we_use() -> None:
    """The library's interface names calls of the installed package; the twin has them too."""
    names = {name for name in vars(type(FakeMooncake().client())) if not name.startswith("_")}
    assert {name for name in names if not hasattr(installed().client(), name)} == {"registered", "is_open"} & names
