"""Simulated rollout workers and a scorer: they put groups as a generator should, slowly, late, or not to the end.

A worker that was told to stop, or whose controller has given up, may go on all the same: what it puts then is a late
attempt's. Invariant: rows go in uncommitted, one tag-only put commits them; a group id is used for one attempt.
"""

from __future__ import annotations

from penstock.controller.news import Generated, GenerationFailed
from penstock.records import Tag
from penstock.requests import Done, Groups, ListMetadata, PutTags, TagColumn
from penstock.testing import checker
from penstock.testing.sim.arena import value_of
from penstock.testing.sim.client import Ask, Pause, Program
from penstock.testing.sim.habits import PARTITION, Sub, expect, put, until_done
from penstock.testing.sim.steering.book import Attempt
from penstock.testing.sim.steering.cast import NOTICE, Cast, Member, Reply

__all__ = ["POINTS", "Scorer", "Worker", "hash_of"]

POINTS = ("before put", "between puts", "before commit", "after commit")
_SPEED_S = (0.005, 0.005, 0.02, 0.1, 0.4, 1.5)
_HANG_S = 9.0
_HANGS, _FAILS, _STOPS = 0.03, 0.03, 0.5
_VOID = ("RowRemoved", "UnknownName")  # removed under us, or the plane came back empty


def hash_of(key: str) -> str:
    """What a row holds, as its producer and its consumer write it down."""
    return f"{value_of(key, 'ids'):016x}"


class Worker(Member):
    """One rollout process."""

    def __init__(self, cast: Cast, name: str) -> None:
        self._orders: dict[str, Reply] = {}
        self._stopped: set[str] = set()
        super().__init__(cast, name)
        if cast.scenario.config.needs:
            self.beat_as("rollout")

    def generate(self, group_id: str, prompt: int, version: int, reply: Reply) -> None:
        """Answer a prompt."""
        if not self.alive:
            if self.world.chance(NOTICE):
                reply.send(GenerationFailed(group_id, "nobody listens"))
            return
        self._orders[group_id] = reply
        self.run(self._generate(group_id, prompt, version, reply))

    def stop_generating(self, group_id: str) -> None:
        """Its controller does not want it any more; not every engine can be stopped."""
        if self.world.chance(_STOPS):
            self._stopped.add(group_id)

    def kill(self, noticed_s: float) -> None:
        super().kill(noticed_s)
        why = f"{self.name} died"
        self.tell_death((reply, GenerationFailed(group_id, why)) for group_id, reply in self._orders.items())

    # -- one attempt --------------------------------------------------------------------------------------------------

    def _generate(self, group_id: str, prompt: int, version: int, reply: Reply) -> Program:
        why = yield from self._attempt(group_id, prompt, version)
        if self.alive:
            del self._orders[group_id]
            rejected = why == "rejected"
            reply.send(GenerationFailed(group_id, why, rejected) if why else Generated(group_id))

    def _attempt(self, group_id: str, prompt: int, version: int) -> Sub:
        """Return why it failed; "" if it did not."""
        scenario, rng = self.cast.scenario, self.world.rng
        if scenario.rejects(prompt):
            return "rejected"
        yield Pause(rng.choice(_SPEED_S))
        if self.world.chance(_HANGS):
            self.world.fault("generator_hangs", group_id)
            yield Pause(_HANG_S)
        if group_id in self._stopped:
            return "stopped"
        keys = self._begin(group_id, prompt, version)
        why = yield from self._put_all(group_id, keys, self._tags(group_id, prompt, version))
        if why is not None:
            return why
        if self.cast.dies(self, "before commit"):
            return "dead"
        if scenario.poisons(prompt) or self.world.chance(_FAILS):
            self.world.fault("generator_fails", group_id)
            return "out of memory"
        newest = []
        if self.world.chance(0.3) and not scenario.is_untagged:  # weights came while it generated
            newest = [TagColumn("weight_version_end", [max(version, self.cast.version)])]
        flip = PutTags(PARTITION, keys, [TagColumn("committed", [True]), *newest])
        done = isinstance((yield from until_done(self, self.cast, flip, *_VOID)), Done)
        self.cast.dies(self, "after commit")
        return "" if done else "its rows are gone"

    def _begin(self, group_id: str, prompt: int, version: int) -> list[str]:
        scenario, book = self.cast.scenario, self.cast.book
        size = scenario.config.group_size
        if scenario.is_short and self.world.chance(0.3):
            self.world.fault("row_left_out", group_id)
            size -= 1
        keys = [f"{group_id}_g{i}" for i in range(size)]
        if group_id in book.attempts:
            book.wrong.append(f"two attempts are called {group_id!r}")
        book.attempts[group_id] = Attempt(prompt, version, keys)
        return keys

    def _tags(self, group_id: str, prompt: int, version: int) -> list[TagColumn]:
        tags: dict[str, Tag] = {
            "group_id": group_id,
            "expected_num_keys": self.cast.scenario.config.group_size,
            "weight_version": version,
            "committed": False,
            "prompt": prompt,
        }
        if self.cast.scenario.is_untagged:
            del tags["weight_version"]
        return [TagColumn(name, [value]) for name, value in tags.items()]

    def _put_all(self, group_id: str, keys: list[str], tags: list[TagColumn]) -> Sub:
        """Put the rows, in one or two parts; return why that failed, None if it did not."""
        log, version = self.cast.book.log, self.cast.book.attempts[group_id].version
        cut = self.world.rng.randint(1, len(keys))
        for point, part in (("before put", keys[:cut]), ("between puts", keys[cut:])):
            if self.cast.dies(self, point):
                return "dead"
            if not part:
                continue
            log += [checker.Put("before", key, hash_of(key), version) for key in part]
            if not (yield from put(self, self.cast, part, ["ids"], tags, _VOID)):
                return "its rows are gone"
            log += [checker.Put("after", key, hash_of(key), version) for key in part]
        return None


class Scorer(Member):
    """A later stage: it sets the ready tag of every whole group."""

    def __init__(self, cast: Cast, name: str) -> None:
        super().__init__(cast, name)
        self.run(self._score())

    def _score(self) -> Program:
        while not self.cast.is_over:
            yield Pause(self.world.rng.choice((0.05, 0.2)))
            listed = yield Ask(ListMetadata(PARTITION, committed=True))
            if not isinstance(listed, Groups):
                expect(self, self.cast, listed, *_VOID)
                continue
            for group in listed.groups:
                if "scored" not in group.tags:
                    tags = PutTags(PARTITION, group.keys, [TagColumn("scored", [True])])
                    yield from until_done(self, self.cast, tags, *_VOID)
