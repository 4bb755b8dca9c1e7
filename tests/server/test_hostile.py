"""Fuzz target: well-formed calls with absurd values. Each is answered or costs its connection; the plane goes on."""

from __future__ import annotations

import asyncio
import math
import random
import types
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock import requests
from penstock.ledger.events import Tick
from penstock.requests import MUTATIONS, WIRE_VERSION, Call, Done, Failed, OpenSession, RegisterPartition, Welcome
from penstock.wire import WireError, decode_call, encode_call
from tests.server.harness import grant_of
from tests.server.inside import Inside, Wireless, inside

_BODIES: list[type[msgspec.Struct]] = [
    *(requests.Grant, requests.Locate, requests.Commit, requests.Claim, requests.Heartbeat) * 3,
    *MUTATIONS,
    *(requests.Damaged, requests.ListMetadata, requests.Depth, requests.CheckConsumption, requests.Goodbye),
    requests.ListRows,
    *(requests.Audit, requests.Why, requests.Status, requests.Ping, requests.Capabilities),
]
_INTS = [-1, 0, 1, 2, 64, 2**31, 2**32, 2**63 - 1, -(2**63), 2**64 - 1]
_FLOATS = [math.nan, math.inf, -math.inf, -1.0, 0.0, 1e308, 30.0]
_TEXTS = ["", "p", "x", "train", "k1", "k2", "\0", "group_id", "committed", "expected_num_keys", "weight_version"]


class Absurd:
    """Draws records; now and then it names a grant or a token that was really given."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.numbers = list(_INTS)
        self.texts = list(_TEXTS)

    def value(self, kind: Any) -> Any:
        origin = typing.get_origin(kind)
        if origin in (types.UnionType, typing.Union):
            return self.value(self.rng.choice(typing.get_args(kind)))
        if origin is typing.Literal:
            return self.rng.choice(typing.get_args(kind))
        if origin is list:
            return [self.value(typing.get_args(kind)[0]) for _ in range(self.rng.choice([0, 1, 1, 3]))]
        if origin is dict:
            return {self.value(str): self.value(typing.get_args(kind)[1])}
        simple: dict[Any, list[Any]] = {
            int: self.numbers,
            float: _FLOATS,
            str: self.texts,
            bool: [False, True],
            type(None): [None],
        }
        known: Any = simple.get(kind)
        return self.record(kind) if known is None else self.rng.choice(known)

    def record(self, kind: type[msgspec.Struct]) -> Any:
        hints = typing.get_type_hints(kind)
        while True:
            try:
                return kind(**{name: self.value(hints[name]) for name in kind.__struct_fields__})
            except ValueError:  # a policy that even its own record refuses
                continue

    def body(self) -> Any:
        """One request; most puts are sound but for one field."""
        drawn = self.record(self.rng.choice(_BODIES))
        if not isinstance(drawn, requests.Grant):
            return drawn
        sound = grant_of([f"k{self.rng.randrange(9)}"])
        name = self.rng.choice([*drawn.__struct_fields__, "partition", "partition"])
        return msgspec.structs.replace(sound, **({} if name == "partition" else {name: getattr(drawn, name)}))

    def call(self, number: int) -> Call:
        body = self.body()
        seq = number if isinstance(body, MUTATIONS) else 0
        return Call(number, seq, 0, self.rng.choice([0.0, 30.0, 1e308]), [], self.value(list[int]), body)


def _reopen(world: Inside) -> None:
    world.client = Wireless(world.reception, world.journal)
    world.expect(Welcome, OpenSession(WIRE_VERSION, 7, "o", "r", "h", 1))
    call = world.client.ask(RegisterPartition("p", ["x"], 8, ["train"]))
    world.plane.settle()
    assert isinstance(world.client.reply(call), Done | Failed)


@pytest.mark.parametrize("seed", range(3))
def test_absurd_values_cost_their_call_at_most(tmp_path: Path, seed: int) -> None:
    """Every record the wire knows, with numbers, names and floats at their extremes: all answered, nothing broken."""
    absurd = Absurd(seed)

    async def scenario(world: Inside) -> None:
        failures: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        granted = refused = 0
        for number in range(100, 1100):
            try:
                call = decode_call(encode_call(absurd.call(number))[4:])
            except WireError:
                refused += 1
                continue
            world.reception.receive(world.client, call)
            if absurd.rng.random() < 0.5:
                world.plane.settle()
            if absurd.rng.random() < 0.1:
                world.now += 1.0
                world.plane.tell(Tick(world.now))
                world.plane.custody.expire(world.now)
                await asyncio.sleep(0)
            for reply, _, _ in world.client.sent:
                refused += isinstance(reply.body, Failed)
                if isinstance(reply.body, requests.Granted):
                    granted += 1
                    absurd.numbers[len(_INTS) :] = [reply.body.grant] * 5
                if isinstance(reply.body, requests.Claimed):
                    absurd.texts[len(_TEXTS) :] = [reply.body.token]
            world.client.sent.clear()
            if world.client.ended:
                _reopen(world)
        assert failures == []
        assert not world.plane.stopped.is_set()
        assert granted > 10
        assert refused > 100  # the fault fired

    inside(tmp_path, scenario)
