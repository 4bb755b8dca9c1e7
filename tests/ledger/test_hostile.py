"""Any request that decodes is answered, or waits: the ledger never raises, and its invariants hold after each.

Whole requests are drawn from a seed, with absurd numbers, names and lists among plausible ones.
"""

from __future__ import annotations

import math
import random
from typing import Any

import msgspec
import pytest

from penstock.ledger import events as ev
from penstock.ledger.journal_format import decode_entry, encode_entry
from penstock.records import GroupPolicy
from penstock.requests import (
    MUTATIONS,
    Ack,
    Audit,
    Call,
    CheckConsumption,
    Claim,
    Clear,
    Commit,
    Depth,
    Evict,
    FieldSpec,
    Grant,
    ListMetadata,
    ListRows,
    Locate,
    Pop,
    PutTags,
    RegisterPartition,
    Release,
    Renew,
    Reply,
    Status,
    TagColumn,
    Tokens,
    Why,
)
from penstock.wire import decode_call, encode_reply
from tests.ledger.office import WALL, Office

NUMBERS = [-(1 << 63), -2, -1, 0, 1, 2, 3, 7, 1000, 1 << 62, (1 << 64) - 1]
SECONDS = [None, -1.0, 0.0, 1e-9, 0.5, 3.0, 1e300, math.inf, math.nan]
NAMES = ["", "a", "b", "c", "g", "x", "y", "train", "prep", "p", "q", "é\0", "n" * 2000]
TAGS = [None, True, False, 0, 1, 2, -5, (1 << 64) - 1, 1e300, math.nan, -math.inf, "", "g", "yes", "9" * 5000, "2"]
TAG_NAMES = ["group_id", "committed", "expected_num_keys", "num_keys", "input_lengths", "weight_version", "t"]


class Mischief:
    """Draws requests."""

    def __init__(self, seed: int, office: Office) -> None:
        self.rng = random.Random(seed)
        self.office = office

    def number(self) -> int:
        return self.rng.choice(NUMBERS)

    def name(self) -> str:
        return self.rng.choice(NAMES[1:5] if self.rng.random() < 0.8 else NAMES)

    def names(self) -> list[str]:
        return [self.name() for _ in range(self.rng.randrange(4))]

    def keys(self) -> list[str]:
        return self.names() if self.rng.random() < 0.3 else self.rng.sample(NAMES[1:5], self.rng.randrange(1, 4))

    def partition(self) -> str:
        return "p" if self.rng.random() < 0.9 else self.name()

    def task(self) -> str:
        return self.rng.choice(["train", "train", "prep", "other"])

    def fields(self) -> list[str]:
        return self.rng.choice([*[["x"]] * 6, ["x", "y"], [], self.names()])

    def tokens(self, size: int) -> Tokens:
        leases = [*self.office.ledger.desk.state.leases, "1-1", ""]
        lease = self.rng.sample(leases, self.rng.randrange(min(3, len(leases)) + 1))
        of = self.rng.choice([[], [], [self.rng.choice([0, 0, 1, -1, -2, *NUMBERS]) for _ in range(size)]])
        return Tokens(lease, of)

    def tags(self, size: int) -> list[TagColumn]:
        columns = []
        for name in self.rng.sample(TAG_NAMES, self.rng.randrange(4)):
            rows = self.rng.choice([None, None, None, [0], [], [self.number()]])
            count = self.rng.choice([1, 1, size]) if rows is None else len(rows)
            columns.append(TagColumn(name, [self.rng.choice(TAGS) for _ in range(count)], rows))
        return columns

    def sizes(self, size: int) -> list[int]:
        return [self.rng.choice([0, 1, 100, 100, 10**6, (1 << 64) - 1]) if self.rng.random() < 0.2 else 100] * size

    def grant(self) -> Grant:
        keys = self.keys()
        row_bytes = self.sizes(len(keys))
        nbytes = sum(row_bytes) + 64 if self.rng.random() < 0.9 else self.number()
        specs = [FieldSpec(name, "int64", self.rng.choice([1] * 9 + [2])) for name in self.fields() or ["x"]]
        lengths = self.rng.choice([None, row_bytes])
        return Grant(
            self.partition(), keys, specs, self.tags(len(keys)), min(nbytes, (1 << 64) - 1), row_bytes, lengths
        )

    def registration(self) -> RegisterPartition:
        policy: Any = None
        if self.rng.random() < 0.5:
            policy = GroupPolicy(deadline_s=self.rng.choice([0.0, 2.0, math.inf]), on_deadline="partial")
        tasks = ["prep", "train"] if self.rng.random() < 0.9 else self.names()
        size = self.rng.choice([None, 1, 2, -1, 1 << 62])
        return RegisterPartition(self.partition(), self.fields(), self.number(), tasks, size, policy=policy)

    def claim(self) -> Claim:
        rng = self.rng
        return Claim(
            self.partition(), self.task(), self.fields(), rng.choice([1, 4, 4, 8, 8, 8, self.number()]),
            rng.choice([1, 1, 1, 1, 2, self.number()]), rng.random() < 0.3, rng.choice([None, None, None, self.keys()]),
            rng.random() < 0.4, rng.choice([None, None, 1.0, *SECONDS]), rng.choice([None, self.number()]),
        )  # fmt: skip

    def request(self) -> Any:
        keys = self.keys()
        grants = [*self.office.ledger.desk.state.grants, self.number()]
        held = self.tokens(len(keys))
        made: list[Any] = [
            self.grant, self.grant, self.grant, lambda: Commit(self.rng.choice(grants), self.rng.randrange(5)),
            *[lambda: Commit(grants[0], self.rng.randrange(5))] * 4, *[self.claim] * 4, self.registration,
            lambda: PutTags(self.partition(), keys, self.tags(len(keys))),
            lambda: Ack(self.partition(), self.task(), keys, held), lambda: Pop(self.partition(), keys, held),
            lambda: Release(self.partition(), self.task(), keys, held),
            lambda: Renew(self.partition(), self.task(), keys, held, self.rng.choice(SECONDS)),
            lambda: Evict(self.partition(), keys, self.name()),
            lambda: Clear(self.partition(), self.rng.choice([*[keys] * 9, None])),
            lambda: Locate(self.partition(), keys, self.fields()), lambda: Depth(self.partition()), Audit, Status,
            lambda: CheckConsumption(self.partition(), [self.task()]),
            lambda: Why(self.partition(), *self.rng.choice([(None,), ("train",), (None, "a"), (None, None, "g")])),
            lambda: ListRows(self.partition(), self.rng.choice([keys, None]), self.number(), self.number()),
            lambda: ListMetadata(
                self.partition(), self.rng.choice([None, True]), None, self.number(), self.rng.choice(SECONDS),
                self.rng.choice([None, self.task()]), self.number(), self.rng.choice([None, self.name()]),
            ),
        ]  # fmt: skip
        return self.rng.choice(made)()


def sent(office: Office, session: int, rng: random.Random, body: Any) -> Any:
    """``body`` as the wire delivers it."""
    seq = 0
    if isinstance(body, MUTATIONS):
        seq = office._seqs[session] = office._seqs[session] + 1
        if rng.random() < 0.1:
            seq = rng.choice([1, seq - 1 or 1, 1 << 63])
    done = rng.choice([0, 0, 0, max(0, seq - 5)])
    abandoned = rng.choice([*[[]] * 20, [seq - 1], NUMBERS])
    call = Call(0, seq, done, 1.0, abandoned, [], body)
    return decode_call(msgspec.msgpack.encode(call))


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_asked_the_ledger_stands(seed: int) -> None:
    """Every reply and every record can be encoded; the journal gives the same ledger back."""
    office = Office(max_bytes=100_000, max_rows=200, max_deliveries=2, abandon_grace_s=2.0)
    office.open(1)
    office.open(2)
    office.register(tasks=("prep", "train"))
    mischief = Mischief(seed, office)
    rng = mischief.rng
    answered = 0
    for step in range(250):
        session = rng.choice([1, 2])
        call = sent(office, session, rng, mischief.request())
        number, deadline = 10_000 + step, office.now + 1.0
        office.event(ev.Asked(session, number, call.seq, call.done_below, call.abandoned, deadline, call.body, WALL))
        for reply in office.answers.get(number, []):
            encode_reply(Reply(0, 1, reply))
            answered += 1
        if rng.random() < 0.05:
            office.later(1.0)
        if rng.random() < 0.02:
            for entry in office.journal:
                decode_entry(encode_entry(entry))
            office.crash(None if rng.random() < 0.5 else list(office.ledger.checkpoint(2)))
            for each in (1, 2):
                office.resume(each)
    assert answered > 100
