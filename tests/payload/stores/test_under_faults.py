"""A store on a Mooncake where everything goes wrong at random: whatever it answers must be true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from random import Random

import pytest

from penstock.errors import DataPlaneUnavailable
from penstock.payload.stores.contract import EXISTS, Corrupt, Failed, Missing, Ok, Outcome
from penstock.payload.stores.mooncake.link import MAX_STUCK
from penstock.testing.fake_mooncake_faults import (
    Call,
    Fault,
    add_replies,
    damage,
    drop_replies,
    fail,
    hang,
    late,
    throw,
)
from tests.payload.stores.sites import FakeSite

KEYS = 6
PATIENCE_S = 0.05  # with the library; that much real time passes when a call hangs
RETRYABLE = [-800, -707, -703, -900, -901, -101, -103, -702, -708, -714, -1010, -200, -9999]
CALLS: tuple[Call, ...] = ("put", "get", "exists", "remove", "describe")
STEPS = ["put"] * 6 + ["get"] * 10 + ["exists"] * 4 + ["remove"] * 4 + ["fault"] * 12 + ["land"] * 3
STEPS += ["kill", "restart"]


def value_of(key: str, version: int) -> bytes:
    return f"{key}@{version}".encode() if version % 4 else b""


class World:
    """A store, what it was told, and what may therefore be true of each key.

    ``possible[key]``: values the key may have; None = it may be missing.
    """

    def __init__(self, stack: ExitStack, replicas: int) -> None:
        self.told: list[str] = []
        self.site = FakeSite(stack)
        self.store = self.site.open(replicas=replicas, on_restarted=self.told.append, call_timeout_s=PATIENCE_S)
        stack.callback(self.site.fake.close)  # who hangs is let go before the store is closed
        self.replicas = replicas
        self.possible: dict[str, set[bytes | None]] = {f"k{n}": {None} for n in range(KEYS)}
        self.acknowledged: set[str] = set()
        self.unknown: dict[str, bytes] = {}  # puts of which nobody knows how they ended
        self.removed: set[str] = set()
        self.faults: list[Fault] = []
        self.version = self.restarts = self.raised = self.kills = 0

    # -- what happens -------------------------------------------------------------------------------------------------

    def fault(self, keys: list[str], seed: int) -> None:
        call = CALLS[seed % len(CALLS)]
        self.faults.append(self.site.fake.inject(fault_of(seed, call, keys[0], 1 + seed % 3)))

    def land(self) -> None:
        """What is late arrives, but over no key that was removed since: this world uses its name again.

        Puts and removals that hang go on hanging: nobody knows which life of a key they would act on.
        """
        for fault in self.faults:
            if fault.call not in {"put", "remove"}:
                fault.release()
            if fault.key not in self.removed:
                fault.land()

    def settle(self) -> None:
        """Nothing fails any more: what was acknowledged is there, and every question is answered."""
        for fault in self.faults:
            fault.times = 0
        stuck = sum(fault.what == "hang" and fault.fired for fault in self.faults)
        raised = self.raised
        outcomes = self.get(list(self.possible))
        if self.raised > raised:
            outcomes = self.get(list(self.possible))
        if stuck < MAX_STUCK:
            assert {type(outcome) for outcome in outcomes} <= {Ok, Missing, Corrupt}, outcomes

    def kill(self) -> None:
        """One owner dies, once; what lay nowhere else may be gone."""
        if self.kills:
            return
        self.kills += 1
        self.site.fake.kill_owner("owner:1")
        if self.replicas == 1:
            for possible in self.possible.values():
                possible.add(None)

    def restart(self) -> None:
        self.restarts += 1
        self.site.fake.restart_master()
        self.possible = {key: {None} for key in self.possible}
        self.acknowledged.clear()
        self.unknown.clear()

    # -- what it is asked ---------------------------------------------------------------------------------------------

    def put(self, keys: list[str]) -> None:
        """Put; a key of which nobody knows how its last put ended is put with the same bytes again."""
        self.version += 1
        values = [self.unknown.get(key, value_of(key, self.version)) for key in keys]
        for key, value, outcome in zip(keys, values, self._call("put", keys, values), strict=True):
            possible = self.possible[key]
            self.unknown.pop(key, None)
            if isinstance(outcome, Ok):
                assert None in possible or value in possible, f"{key}: written over {possible}"
                self.possible[key] = {value}
                self.acknowledged.add(key)
            elif isinstance(outcome, Failed) and outcome.code == EXISTS:
                assert possible != {None}, f"{key}: there was nothing"
            else:
                self.possible[key] = possible | {value}
                self.unknown[key] = value

    def get(self, keys: list[str]) -> list[Outcome]:
        outcomes = self._call("get", keys, None)
        for key, outcome in zip(keys, outcomes, strict=True):
            match outcome:
                case Ok(view, nbytes):
                    value = view.tobytes()
                    assert value in self.possible[key], f"{key}: {value!r} was never put, or not last"
                    assert nbytes == len(value)
                    self.possible[key] = {value} if key in self.acknowledged else {value, None}
                case Missing():
                    assert None in self.possible[key], f"{key}: an acknowledged value is missing"
                    self.possible[key] = {None, *([self.unknown[key]] if key in self.unknown else [])}
                case Corrupt(kind):
                    damaged = any(fault.what == "damage" and fault.fired for fault in self.faults)
                    assert damaged, f"{key} is damaged ({kind}), and nobody has damaged anything"
        return outcomes

    def exists(self, keys: list[str]) -> None:
        for key, outcome in zip(keys, self._call("exists", keys, None), strict=True):
            if isinstance(outcome, Ok):
                lengths = {len(value) for value in self.possible[key] if value is not None}
                assert outcome.nbytes in lengths, f"{key}: {outcome.nbytes} bytes, not one of {lengths}"
            elif isinstance(outcome, Missing):
                assert None in self.possible[key]

    def remove(self, keys: list[str]) -> None:
        for key, outcome in zip(keys, self._call("remove", keys, None), strict=True):
            self.possible[key] = {None} if isinstance(outcome, Ok) else self.possible[key] | {None}
            self.acknowledged.discard(key)
            self.unknown.pop(key, None)
            self.removed.add(key)

    def _call(self, call: str, keys: list[str], values: list[bytes] | None) -> list[Outcome]:
        """Call the store; a restart that it tells of is no outcome: each key may have met it or not."""
        deadline = self.site.deadline(20.0)
        try:
            if values is not None:
                outcomes = self.store.put_many(keys, values, deadline)
            elif call == "get":
                outcomes = self.store.get_many(keys, None, deadline)
            else:
                outcomes = (self.store.exists_many if call == "exists" else self.store.remove_many)(keys, deadline)
        except DataPlaneUnavailable:
            self.raised += 1
            assert self.raised <= self.restarts, "a restart was told twice"
            outcomes = [Failed("restarted")] * len(keys)
        assert self.site.fake.misuses == []
        assert len(self.told) <= self.restarts
        assert len(outcomes) == len(keys)
        return outcomes


def fault_of(seed: int, call: Call, key: str, times: int) -> Fault:
    """One of all kinds."""
    transfer: Call = "put" if call == "put" else "get"
    makers: list[Callable[[], Fault]] = [
        lambda: fail(RETRYABLE[seed % len(RETRYABLE)], call=call, key=key, times=times),
        lambda: drop_replies(call=call, times=times),
        lambda: add_replies(call=call, times=times),
        lambda: throw(RuntimeError("cannot convert"), call=call, times=times),
        lambda: damage(call=transfer, key=key),
        lambda: late(call=transfer, key=key, times=times),
        lambda: fail(-800, call=call, times=times),
        lambda: hang(call=call),
    ]
    return makers[seed % len(makers)]()


def script_of(seed: int) -> list[tuple[str, list[int]]]:
    """What happens in the world of that number."""
    random = Random(seed)
    return [
        (random.choice(STEPS), [random.randrange(64) for _ in range(random.randint(1, 5))])
        for _ in range(random.randrange(40))
    ]


def play(here: World, script: list[tuple[str, list[int]]]) -> None:
    for what, numbers in script:
        keys = list(dict.fromkeys(f"k{number % KEYS}" for number in numbers))
        if what == "fault":
            here.fault(keys, sum(numbers))
        elif what in {"land", "kill", "restart"}:
            getattr(here, what)()
        else:
            getattr(here, what)(keys)
    here.settle()


def run(seeds: range) -> Counter[str]:
    """Play these worlds; return which faults took effect how often."""
    fired: Counter[str] = Counter()
    for seed in seeds:
        with ExitStack() as stack:
            here = World(stack, replicas=1 + seed % 2)
            try:
                play(here, script_of(seed))
            except AssertionError as error:
                error.add_note(f"world {seed}, {1 + seed % 2} replicas")
                raise
            fired.update(fault.what for fault in here.faults if fault.fired)
            fired.update({"kill": here.kills, "restart": here.raised})
    return fired


def test_what_it_answers_is_true() -> None:
    """In 120 worlds: no value that was never put, none that was acknowledged is missing, no misuse of the library."""
    fired = run(range(120))
    assert set(fired) == {"fail", "drop_replies", "add_replies", "throw", "damage", "late", "hang", "kill", "restart"}


@pytest.mark.slow
def test_what_it_answers_is_true_in_many_worlds() -> None:
    """The same in 1,500."""
    run(range(120, 1620))


# -- what such worlds have found --------------------------------------------------------------------------------------


@pytest.fixture
def site() -> Iterator[FakeSite]:
    with ExitStack() as stack:
        yield FakeSite(stack)


@pytest.mark.parametrize("times", [1, 100], ids=["succeeded-later", "was-given-up"])
def test_memory_of_an_earlier_put_is_not_written_for_a_later_one(site: FakeSite, times: int) -> None:
    """A put fails for a while, its key is removed and put again with other bytes as long: those are what is read."""
    store = site.open()
    fault = site.fake.inject(fail(-800, call="put", times=times))
    store.put_many(["k"], [b"first"], site.deadline(5.0))
    assert fault.fired >= 1
    fault.times = 0
    assert store.remove_many(["k"], site.deadline()) == [Ok()]
    assert store.put_many(["k"], [b"other"], site.deadline()) == [Ok(nbytes=5)]
    (got,) = store.get_many(["k"], None, site.deadline())
    assert isinstance(got, Ok)
    assert got.view.tobytes() == b"other"


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda: fail(-800, call="put", key="k"), id="first-copy-failed"),
        pytest.param(lambda: fail(-800, call="put", key="k\x1f1"), id="second-copy-failed"),
        pytest.param(lambda: throw(RuntimeError("no"), call="put", times=2), id="raised"),
        pytest.param(lambda: add_replies(call="put", times=2), id="landed-but-not-believed"),
    ],
)
def test_copies_lie_apart_whatever_happened_to_the_first_attempt(site: FakeSite, fault: Callable[[], Fault]) -> None:
    """With two replicas and two owners, a put that was retried survives the death of either owner."""
    store = site.open(replicas=2)
    armed = site.fake.inject(fault())
    keys = [f"k{n}" for n in range(12)] + ["k"]
    assert store.put_many(keys, [b"v"] * 13, site.deadline()) == [Ok(nbytes=1)] * 13
    assert armed.fired == armed.times
    stored = site.fake.master.keys
    together = [key for key in keys if len({stored[name].segment.name for name in (key, f"{key}\x1f1")}) != 2]
    assert together == []


def test_a_put_that_lands_late_finds_its_own_bytes(site: FakeSite) -> None:
    """The memory of a put that failed is nobody else's: what lands from it later is what its key names."""
    store = site.open()
    fault = site.fake.inject(late(call="put", key="a"))
    assert store.put_many(["a"], [b"a" * 99], site.deadline()) == [Ok(nbytes=99)]
    for key in "bcdef":
        assert store.put_many([key], [key.encode() * 99], site.deadline()) == [Ok(nbytes=99)]
    assert fault.land() == 1
    (got,) = store.get_many(["a"], None, site.deadline())
    assert isinstance(got, Ok), got
    assert got.view.tobytes() == b"a" * 99
    assert store.statistics().quarantined_bytes > 0


def test_a_read_that_lands_late_hits_nobody(site: FakeSite) -> None:
    """The memory of a get that failed is not used for a put: bytes that arrive in it later are stored nowhere."""
    store = site.open()
    store.put_many(["a"], [b"a" * 99], site.deadline())
    fault = site.fake.inject(late(call="get", key="a"))
    assert isinstance(store.get_many(["a"], None, site.deadline())[0], Ok)
    landed: list[int] = []
    site.fake.on_call = lambda call, _keys: landed.append(fault.land()) if call == "put" else None
    for key in "bcdef":
        assert store.put_many([key], [key.encode() * 99], site.deadline()) == [Ok(nbytes=99)]
    assert sum(landed) == 1
    got = store.get_many(list("bcdef"), None, site.deadline())
    assert [outcome.view[:1].tobytes() for outcome in got if isinstance(outcome, Ok)] == [b"b", b"c", b"d", b"e", b"f"]
