"""The retry machine: driven by hand, and by Hypothesis through whole runs in virtual time."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import BadArgument, IllegalTransition
from penstock.retry.health import Health
from penstock.retry.machine import (
    TRANSITIONS,
    VERDICTS,
    Attempt,
    Begin,
    Effect,
    Finished,
    GiveUp,
    Outcome,
    Retry,
    State,
    Step,
    Timer,
    Wait,
)
from penstock.retry.policy import DEFAULT, FIELD, NONE, Kind, Policy, Reason

NO_BUDGET = Policy(bucket_tokens=0.0, quarantine_s=0.0)


def machine(policy: Policy = DEFAULT, health: Health | None = None) -> Retry:
    return Retry(policy, health or Health(policy))


def begin(retry: Retry, *keys: str, endpoints: tuple[str, ...] = ("a",), deadline_at: float = 30.0) -> list[Effect]:
    return retry.handle(Begin(keys, endpoints, deadline_at), 0.0)


# -- by hand --------------------------------------------------------------------------------------------------------


def test_success_finishes_at_once() -> None:
    """One attempt, one answer, no wait."""
    retry = machine()
    assert begin(retry, "k") == [Attempt(1, 1, "a", ("k",))]
    assert retry.handle(Outcome(1, "k", Kind.OK), 0.1) == [Finished()]


def test_only_the_failed_keys_go_again() -> None:
    """The next round holds the keys that failed and no other."""
    retry = machine()
    begin(retry, "x", "y", "z")
    assert retry.handle(Outcome(1, "y", Kind.RETRYABLE), 0.1) == []
    assert retry.handle(Outcome(1, "x", Kind.OK), 0.1) == []
    assert retry.handle(Outcome(1, "z", Kind.RETRYABLE), 0.1) == [Wait(0.0, 0.05)]
    assert retry.handle(Timer(), 0.2) == [Attempt(2, 2, "a", ("y", "z"))]


def test_no_key_is_nothing_to_do() -> None:
    """An empty set is finished, with no attempt."""
    assert begin(machine()) == [Finished()]


def test_an_endpoint_is_needed() -> None:
    """Nowhere to go is the caller's mistake."""
    with pytest.raises(BadArgument, match="endpoint"):
        begin(machine(), "k", endpoints=())


@pytest.mark.parametrize(
    ("kind", "reason"), [(Kind.MISSING, Reason.MISSING), (Kind.FATAL, Reason.FATAL)], ids=["missing", "fatal"]
)
def test_final_answers_are_not_retried(kind: Kind, reason: Reason) -> None:
    """Missing and fatal end a key at its first answer, with its code."""
    retry = machine()
    begin(retry, "k")
    assert retry.handle(Outcome(1, "k", kind, "-704"), 0.1) == [GiveUp("k", reason, "-704", 1), Finished()]


def test_a_damaged_answer_is_read_once_more() -> None:
    """The second damaged answer ends a key; failures of other kinds before and between do not count."""
    retry = machine()
    begin(retry, "k")
    for number, kind in enumerate([Kind.RETRYABLE, Kind.CORRUPT, Kind.RETRYABLE], start=1):
        assert isinstance(retry.handle(Outcome(number, "k", kind), float(number))[0], Wait)
        retry.handle(Timer(), number + 0.5)
    effects = retry.handle(Outcome(4, "k", Kind.CORRUPT, "-801"), 5.0)
    assert effects == [GiveUp("k", Reason.CORRUPT, "-801", 4), Finished()]


def test_no_wait_follows_the_last_attempt() -> None:
    """The twelfth failure ends in GiveUp, and eleven waits came before it."""
    retry = machine(NO_BUDGET)
    effects, waits = begin(retry, "k"), 0
    for number in range(1, 13):
        assert isinstance(effects[0], Attempt)
        effects = retry.handle(Outcome(number, "k", Kind.RETRYABLE, "-800"), 0.0)
        if isinstance(effects[0], Wait):
            waits += 1
            effects = retry.handle(Timer(), 0.0)
    assert effects == [GiveUp("k", Reason.ATTEMPTS, "-800", 12), Finished()]
    assert waits == 11


def test_nothing_is_tried_when_the_deadline_has_come() -> None:
    """Checked before the first attempt as before any other."""
    assert begin(machine(), "k", deadline_at=0.0) == [GiveUp("k", Reason.DEADLINE, "", 0), Finished()]


def test_a_wait_ends_with_the_deadline() -> None:
    """A wait is cut to the time left; when it is used up the key is given up, not tried."""
    retry = machine()
    begin(retry, "k", deadline_at=1.0)
    assert retry.handle(Outcome(1, "k", Kind.RETRYABLE, "-800"), 0.99) == [Wait(0.0, pytest.approx(0.01))]  # type: ignore[arg-type]
    assert retry.handle(Timer(), 1.0) == [GiveUp("k", Reason.DEADLINE, "-800", 1), Finished()]


def test_silence_until_the_deadline_fails_the_endpoint() -> None:
    """An attempt that never answers is given up at the deadline and fails its endpoint; a late answer is ignored."""
    health = Health(DEFAULT)
    retry = machine(health=health)
    begin(retry, "k", deadline_at=1.0)
    assert retry.handle(Timer(), 0.5) == []
    assert retry.handle(Timer(), 1.0) == [GiveUp("k", Reason.DEADLINE, "", 1), Finished()]
    assert health.tokens() == {"a": 9.0}
    assert retry.handle(Outcome(1, "k", Kind.OK), 1.1) == []
    assert retry.handle(Timer(), 1.2) == []
    retry.check_invariants()


def test_backpressure_has_its_own_base_and_budget() -> None:
    """Waits of up to 0.5, 1, 2 s, five seconds in all, then given up; the endpoint loses no token by it."""
    health = Health(DEFAULT)
    retry = machine(health=health)
    begin(retry, "k")
    now, number, ceilings = 0.0, 1, []
    while isinstance((effects := retry.handle(Outcome(number, "k", Kind.BACKPRESSURE, "-200"), now))[0], Wait):
        ceilings.append(effects[0].at_most_s)
        now, number = now + effects[0].at_most_s, number + 1
        retry.handle(Timer(), now)
    assert effects == [GiveUp("k", Reason.BACKPRESSURE, "-200", 5), Finished()]
    assert ceilings == [0.5, 1.0, 2.0, 1.5]
    assert health.tokens() == {}
    assert health.quarantine.held(now) == []


def test_a_round_waits_for_its_most_patient_key() -> None:
    """With one key under backpressure the whole round waits as backpressure does."""
    retry = machine()
    begin(retry, "x", "y")
    retry.handle(Outcome(1, "x", Kind.RETRYABLE), 0.0)
    assert retry.handle(Outcome(1, "y", Kind.BACKPRESSURE), 0.0) == [Wait(0.0, 0.5)]


def test_an_outage_stops_being_retried_at_half_the_tokens() -> None:
    """The fifth failed attempt at one endpoint ends the retries; a new run still gets its first attempt."""
    health = Health(DEFAULT)
    retry = machine(health=health)
    begin(retry, "k")
    for number in range(1, 5):
        assert isinstance(retry.handle(Outcome(number, "k", Kind.RETRYABLE), 0.0)[0], Wait)
        retry.handle(Timer(), 0.0)
    effects = retry.handle(Outcome(5, "k", Kind.RETRYABLE, "-800"), 0.0)
    assert effects == [GiveUp("k", Reason.BUDGET, "-800", 5), Finished()]
    other = machine(health=health)
    assert begin(other, "k") == [Attempt(1, 1, "a", ("k",))]
    assert other.handle(Outcome(1, "k", Kind.RETRYABLE, "x"), 0.0) == [GiveUp("k", Reason.BUDGET, "x", 1), Finished()]


def test_a_budget_spent_by_others_during_the_wait_is_spent() -> None:
    """The bucket is asked again before the attempt."""
    health = Health(DEFAULT)
    retry = machine(health=health)
    begin(retry, "k")
    retry.handle(Outcome(1, "k", Kind.RETRYABLE, "-800"), 0.0)
    for _ in range(9):
        health.record("a", failed=1, answered=0, now=0.0)
    assert retry.handle(Timer(), 0.1) == [GiveUp("k", Reason.BUDGET, "-800", 1), Finished()]


def test_a_retry_goes_to_the_next_free_endpoint() -> None:
    """Round-robin over those not in quarantine; when all are, the oldest failure first."""
    retry, used = machine(), []
    effects = begin(retry, "k", endpoints=("a", "b", "c"))
    for number in range(1, 7):
        assert isinstance(effects[0], Attempt)
        used.append(effects[0].endpoint)
        retry.handle(Outcome(number, "k", Kind.RETRYABLE), float(number))
        effects = retry.handle(Timer(), float(number))
    assert used == ["a", "b", "c", "a", "b", "c"]


def test_a_retry_goes_elsewhere_though_nobody_is_held() -> None:
    """A batch that came back in part holds no endpoint, and yet its rest is tried at the next one."""
    retry = machine()
    begin(retry, "x", "y", endpoints=("a", "b"))
    retry.handle(Outcome(1, "x", Kind.OK), 0.1)
    retry.handle(Outcome(1, "y", Kind.RETRYABLE), 0.1)
    assert retry.health.quarantine.held(0.1) == []
    assert retry.handle(Timer(), 0.2) == [Attempt(2, 2, "b", ("y",))]


def test_a_quarantined_endpoint_is_passed_over_by_the_next_run() -> None:
    """What one run learns another uses, until the quarantine ends."""
    health = Health(DEFAULT)
    health.record("a", failed=1, answered=0, now=0.0)
    assert begin(machine(health=health), "k", endpoints=("a", "b")) == [Attempt(1, 1, "b", ("k",))]
    later = machine(health=health)
    assert later.handle(Begin(("k",), ("a", "b"), 60.0), 30.0) == [Attempt(1, 1, "a", ("k",))]


def test_a_drained_endpoint_gives_way_to_another() -> None:
    """A retry goes where there is budget, even if that endpoint is in quarantine."""
    health = Health(DEFAULT)
    for _ in range(5):
        health.record("a", failed=1, answered=0, now=0.0)
    health.record("a", failed=0, answered=0, now=0.0)
    health.record("b", failed=1, answered=0, now=0.0)
    retry = machine(health=health)
    begin(retry, "k", endpoints=("a", "b"))
    retry.handle(Outcome(1, "k", Kind.RETRYABLE), 0.1)
    assert retry.handle(Timer(), 0.2) == [Attempt(2, 2, "b", ("k",))]


def test_field_waits_exactly_a_second_in_batches() -> None:
    """Four batches go out at once, the fifth as the first lands; a retry follows after exactly one second."""
    keys = tuple(map(str, range(2000)))
    retry = machine(FIELD)
    effects = begin(retry, *keys)
    assert [len(e.keys) for e in effects if isinstance(e, Attempt)] == [400] * 4
    later = [e for key in keys[:400] for e in retry.handle(Outcome(1, key, Kind.RETRYABLE), 0.0)]
    assert later == [Attempt(5, 1, "a", keys[1600:])]
    for number in range(2, 6):
        effects = [
            e for key in keys[400 * (number - 1) : 400 * number] for e in retry.handle(Outcome(number, key, Kind.OK), 0)
        ]
    assert effects == [Wait(1.0, 1.0)]
    assert retry.handle(Timer(), 1.0) == [Attempt(6, 2, "a", keys[:400])]


def test_field_does_not_wait_for_a_deadline_it_cannot_meet() -> None:
    """With less than a second left there is nothing to wait for."""
    retry = machine(FIELD)
    begin(retry, "k", deadline_at=1.5)
    effects = retry.handle(Outcome(1, "k", Kind.RETRYABLE, "-800"), 0.6)
    assert effects == [GiveUp("k", Reason.DEADLINE, "-800", 1), Finished()]


def test_batches_not_sent_out_before_the_deadline_are_given_up() -> None:
    """The deadline is checked before each attempt, within a round too."""
    retry = machine(Policy(batch=1))
    assert begin(retry, "x", "y", deadline_at=1.0) == [Attempt(1, 1, "a", ("x",))]
    effects = retry.handle(Outcome(1, "x", Kind.OK), 2.0)
    assert effects == [GiveUp("y", Reason.DEADLINE, "", 0), Finished()]


def test_none_never_retries() -> None:
    """One try and the answer is what it is."""
    retry = machine(NONE)
    begin(retry, "k")
    assert retry.handle(Outcome(1, "k", Kind.RETRYABLE, "x"), 0.0) == [GiveUp("k", Reason.ATTEMPTS, "x", 1), Finished()]


# -- the tables -----------------------------------------------------------------------------------------------------


def in_state(state: State) -> Retry:
    retry = machine()
    if state is not State.IDLE:
        begin(retry, "k")
    if state is State.WAITING:
        retry.handle(Outcome(1, "k", Kind.RETRYABLE), 0.0)
    if state is State.FINISHED:
        retry.handle(Outcome(1, "k", Kind.OK), 0.0)
    assert retry.state is state
    return retry


EVENTS = (Begin(("k",), ("a",), 9.0), Outcome(1, "k", Kind.OK), Timer())


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", EVENTS, ids=["Begin", "Outcome", "Timer"])
def test_every_pair_is_in_the_table_or_an_error(state: State, event: Begin | Outcome | Timer) -> None:
    """A pair that is not in the table is refused with the machine's last events, and changes nothing."""
    retry = in_state(state)
    if (state, type(event)) in TRANSITIONS:
        retry.handle(event, 0.0)
        assert retry.state in TRANSITIONS[state, type(event)][1]
        return
    before = repr(retry)
    with pytest.raises(IllegalTransition, match=r"cannot take .* last events: ") as caught:
        retry.handle(event, 0.0)
    assert repr(retry) == before
    assert bool(caught.value.history) == (state is not State.IDLE)


def test_the_tables_are_complete() -> None:
    """Every kind has a verdict, every step an entry that uses it."""
    assert set(VERDICTS) == set(Kind)
    assert {step for step, _ in TRANSITIONS.values()} == set(Step)


@pytest.mark.parametrize("outcome", [Outcome(2, "k", Kind.OK), Outcome(1, "other", Kind.OK)], ids=["attempt", "key"])
def test_an_answer_nobody_waits_for_is_refused(outcome: Outcome) -> None:
    """The answer to another attempt, or of another key, is an error, not a success."""
    with pytest.raises(IllegalTransition):
        in_state(State.TRYING).handle(outcome, 0.0)


def test_a_key_answers_an_attempt_once() -> None:
    """The second answer of a key in one attempt is an error."""
    retry = machine()
    begin(retry, "x", "y")
    retry.handle(Outcome(1, "x", Kind.OK), 0.0)
    with pytest.raises(IllegalTransition):
        retry.handle(Outcome(1, "x", Kind.OK), 0.0)


# -- whole runs in virtual time -------------------------------------------------------------------------------------


@dataclass
class World:
    """Drives a machine as a shell would, with random answers, durations and waits; keeps a log."""

    policy: Policy
    seed: int
    answer: Callable[[random.Random], Kind]
    slow_s: float = 0.0
    health: Health = field(init=False)
    now: float = 0.0
    tried: list[tuple[float, int, str, tuple[str, ...]]] = field(default_factory=list)
    ended: list[tuple[str, Reason | None]] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    slept: float = 0.0
    last: Effect | None = None

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.health = Health(self.policy)

    def run(self, keys: Sequence[str], endpoints: Sequence[str], deadline_s: float) -> None:
        retry = Retry(self.policy, self.health)
        pending = self.told(retry.handle(Begin(tuple(keys), tuple(endpoints), self.now + deadline_s), self.now))
        while pending:
            retry.check_invariants()
            flights = [effect for effect in pending if isinstance(effect, Attempt)]
            effect = self.rng.choice(flights) if flights else pending[0]
            pending.remove(effect)
            pending += self.told(self.carry_out(retry, effect))
        assert retry.state is State.FINISHED

    def told(self, effects: list[Effect]) -> list[Effect]:
        """Log what the machine wants; attempts start at this moment, whatever it takes to answer them."""
        for effect in effects:
            self.last = effect
            if isinstance(effect, Attempt):
                self.tried.append((self.now, effect.round, effect.endpoint, effect.keys))
            if isinstance(effect, GiveUp):
                self.ended.append((effect.key, effect.reason))
        return effects

    def carry_out(self, retry: Retry, effect: Effect) -> list[Effect]:
        if isinstance(effect, Attempt):
            return self.answers(retry, effect)
        if isinstance(effect, Wait):
            self.waits.append(effect)
            seconds = self.rng.uniform(effect.at_least_s, effect.at_most_s)
            self.now, self.slept = self.now + seconds, self.slept + seconds
            return retry.handle(Timer(), self.now)
        return []

    def answers(self, retry: Retry, attempt: Attempt) -> list[Effect]:
        self.now += self.rng.uniform(0, self.slow_s)
        effects: list[Effect] = []
        for key in self.rng.sample(attempt.keys, len(attempt.keys)):
            kind = self.answer(self.rng)
            if kind is Kind.OK:
                self.ended.append((key, None))
            effects += retry.handle(Outcome(attempt.number, key, kind), self.now)
        return effects


policies = st.builds(
    Policy,
    max_attempts=st.integers(1, 12),
    base_s=st.floats(0, 1),
    cap_s=st.floats(0, 3),
    jitter=st.booleans(),
    bucket_tokens=st.sampled_from([0.0, 1.0, 10.0]),
    quarantine_s=st.sampled_from([0.0, 1.0, 30.0]),
    batch=st.sampled_from([None, 1, 2]),
    workers=st.integers(1, 3),
)
answers = st.lists(st.sampled_from(Kind), min_size=1, max_size=6).map(lambda kinds: lambda rng: rng.choice(kinds))
key_sets = st.lists(st.text("abcdef", min_size=1, max_size=2), unique=True, max_size=6)
endpoint_sets = st.lists(st.sampled_from("pqrs"), unique=True, min_size=1)


@settings(max_examples=150, deadline=None)
@given(policies, answers, key_sets, endpoint_sets, st.floats(0, 10), st.floats(0, 1), st.integers())
def test_any_run_keeps_its_promises(
    policy: Policy,
    answer: Callable[[random.Random], Kind],
    keys: list[str],
    endpoints: list[str],
    deadline_s: float,
    slow_s: float,
    seed: int,
) -> None:
    """Each key ends once; nothing starts past the deadline; only failed keys go again; no wait comes last."""
    world = World(policy, seed, answer, slow_s)
    world.run(keys, endpoints, deadline_s)
    assert Counter(key for key, _ in world.ended) == Counter(keys)
    assert isinstance(world.last, Finished)
    assert all(at < deadline_s for at, *_ in world.tried)
    assert world.slept <= deadline_s
    tries = Counter(key for *_, tried in world.tried for key in tried)
    assert max(tries.values(), default=0) <= policy.max_attempts
    rounds: dict[int, list[str]] = {}
    for _, number, endpoint, tried in world.tried:
        assert endpoint in endpoints
        rounds.setdefault(number, []).extend(tried)
    for number, members in rounds.items():
        assert len(set(members)) == len(members)
        assert number == 1 or set(members) <= set(rounds[number - 1])
    assert len(world.waits) <= max(len(rounds), 1)


@settings(max_examples=50, deadline=None)
@given(st.integers(), st.integers(1, 30))
def test_an_outage_does_not_multiply_its_load(seed: int, runs: int) -> None:
    """With one dead endpoint any number of calls make their first attempts and four retries between them."""
    world = World(DEFAULT, seed, lambda _: Kind.RETRYABLE)
    for _ in range(runs):
        world.run(["k"], ["a"], 30.0)
    assert len(world.tried) <= runs + 4


@settings(max_examples=50, deadline=None)
@given(st.integers(), st.integers(2, 4))
def test_quarantine_starves_no_endpoint(seed: int, count: int) -> None:
    """While all fail, any ``count`` successive attempts touch all endpoints."""
    world = World(Policy(bucket_tokens=0.0), seed, lambda _: Kind.RETRYABLE)
    endpoints = ["p", "q", "r", "s"][:count]
    world.run(["k"], endpoints, 1000.0)
    used = [endpoint for _, _, endpoint, _ in world.tried]
    assert len(used) == 12
    for i in range(len(used) - count + 1):
        assert set(used[i : i + count]) == set(endpoints)


@settings(max_examples=30, deadline=None)
@given(st.integers())
def test_a_lossy_endpoint_is_ridden_out(seed: int) -> None:
    """With one answer in twenty lost, a batch of 50 keys comes whole: the fault that the policy is there for."""
    world = World(DEFAULT, seed, lambda rng: Kind.RETRYABLE if rng.random() < 0.05 else Kind.OK)
    for _ in range(20):
        world.run([str(i) for i in range(50)], ["a"], 30.0)
    assert len(world.tried) > 20
    assert [end for end in world.ended if end[1] is not None] == []


def test_the_same_seed_is_the_same_run() -> None:
    """The machine has no randomness of its own: a run replays exactly."""

    def world(seed: int) -> World:
        world = World(DEFAULT, seed, lambda rng: rng.choice(list(Kind)), 0.2)
        world.run([str(i) for i in range(20)], ["p", "q"], 30.0)
        return world

    assert (world(7).tried, world(7).ended) == (world(7).tried, world(7).ended)
    assert world(7).tried != world(8).tried


def test_a_first_attempt_that_was_made_already_is_the_first_rounds() -> None:
    """It is sent out to where it was made, though that is held by now; an endpoint that is not one is refused."""
    health = Health(DEFAULT)
    health.quarantine.failed("b", 0.0)
    machine = Retry(DEFAULT, health)
    with pytest.raises(BadArgument, match="what was tried is one of them"):
        machine.handle(Begin(("k",), ("a", "b"), 30.0, tried="c"), 0.0)
    (attempt,) = machine.handle(Begin(("k",), ("a", "b"), 30.0, tried="b"), 0.0)
    assert isinstance(attempt, Attempt)
    assert attempt.endpoint == "b"
    machine.handle(Outcome(attempt.number, "k", Kind.RETRYABLE), 1.0)
    (attempt,) = machine.handle(Timer(), 1.0)
    assert isinstance(attempt, Attempt)
    assert attempt.endpoint == "a"
