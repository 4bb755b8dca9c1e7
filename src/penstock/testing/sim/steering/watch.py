"""Looks over a controller's shoulder: what must be so at the moment at which an act is done, or a word is told.

Invariant: it judges by the disks, the trainer's steps and the plane's removals, and by what the shell has heard itself;
the machine is not asked.
"""

from __future__ import annotations

import math

from penstock.controller import effects as do
from penstock.controller import news as nw
from penstock.controller.events import Again, Reaped, Recovered, RunEvent
from penstock.controller.policies import Windowed
from penstock.testing.sim.steering.cast import Cast, Member

__all__ = ["Watch"]

_MUTE = 3  # so many signs of life in a row must be lost


class Watch:
    """Of one life."""

    def __init__(self, cast: Cast, life: int) -> None:
        self._cast = cast
        self._life = life
        self._generating: dict[str, int] = {}  # group id -> version, of attempts that have not been answered
        self._generated: set[str] = set()
        self._incarnation = 0
        self._went_on = 0  # the incarnation with which the run last went on
        self._listed = 0  # groups, when last listed

    def hears(self, news: nw.News) -> None:
        """Note what has come."""
        match news:
            case nw.Generated(group_id):
                self._generating.pop(group_id, None)
                self._generated.add(group_id)
            case nw.GenerationFailed(group_id=group_id) | nw.NoSuchPrompt(group_id):
                self._generating.pop(group_id, None)
            case nw.PlaneBack(capabilities):
                self._incarnation = capabilities.incarnation
            case nw.Listed(groups):
                self._listed = len(groups)

    def sees(self, effect: do.Effect) -> None:
        """Check what is about to be done."""
        match effect:
            case do.Tell(event):
                self._word(event)
            case do.Dispatch():
                self._dispatch(effect)
            case do.Cancel(group_id):
                self._generating.pop(group_id, None)
            case do.Train():
                self._order(effect)
            case do.Publish(version):
                self._publication(version)
            case do.Claim():
                self._claim()
            case do.Pop(keys, _):
                self._pop(keys)
            case do.Evict(keys, reason):
                self._cast.book.evicted.update(dict.fromkeys(keys, reason))

    def _wrong(self, what: str) -> None:
        self._cast.book.wrong.append(f"life {self._life} at {self._cast.world.now:.3f}: {what}")

    # -- acts ---------------------------------------------------------------------------------------------------------

    def _dispatch(self, one: do.Dispatch) -> None:
        book, group_id = self._cast.book, one.group_id
        if group_id in book.dispatched:
            self._wrong(f"{group_id!r} is dispatched again; life {book.dispatched[group_id]} did so first")
        if not book.knows_attempt(one.prompt, int(group_id.rpartition(".")[2])):
            self._wrong(f"{group_id!r} is dispatched, and the durable record does not know")
        if group_id.endswith(".0") and (room := self._room()) < 0:
            self._wrong(f"{group_id!r} is opened, {-room} more than the steps to come take")
        if one.version > book.stand:
            self._wrong(f"{group_id!r} is dispatched with version {one.version}; the trainer stands at {book.stand}")
        self._generating[group_id] = one.version

    def _room(self) -> int:
        """How many prompts more the steps to come could take than are open."""
        config, record = self._cast.scenario.config, self._cast.book.record
        if config.max_steps is None or record is None:
            return 0
        batch = math.ceil(config.groups_per_step * config.over_sampling)
        return (config.max_steps - record.step) * batch - len(record.open)

    def _claim(self) -> None:
        policy = self._cast.scenario.config.policy
        if isinstance(policy, Windowed) and policy.wait_for_stragglers:
            oldest = self._cast.book.stand - policy.max_staleness_versions
            if left := [group for group, version in self._generating.items() if version == oldest]:
                self._wrong(f"the version passes {left}, which are being generated")

    def _order(self, one: do.Train) -> None:
        book, step, ready_tag = self._cast.book, one.step, self._cast.scenario.config.ready_tag
        if book.record is None or book.record.step != step - 1:
            self._wrong(f"step {step} is ordered on the record {book.record}")
        if not book.published or book.published[-1] != step - 1:
            self._wrong(f"step {step} is ordered before version {step - 1} was published")
        if ready_tag is not None and any(ready_tag not in tags for tags in one.meta.tags or ()):
            self._wrong(f"step {step} is ordered of rows without the tag {ready_tag!r}")

    def _pop(self, keys: tuple[str, ...]) -> None:
        steps = self._cast.book.steps
        durable = set(steps[-1].keys) if steps else set()
        if not durable.issuperset(keys):
            self._wrong(f"rows are popped that no durable step names: {sorted(set(keys) - durable)}")

    def _publication(self, version: int) -> None:
        book = self._cast.book
        if book.record is None or book.record.step != version or version > book.stand:
            self._wrong(f"version {version} is published; record {book.record}, trainer at step {book.stand}")

    # -- words --------------------------------------------------------------------------------------------------------

    def _word(self, event: RunEvent) -> None:
        """What listeners are told is so."""
        if isinstance(event, Recovered):
            is_new = self._went_on not in (0, self._incarnation)
            if event.empty and (self._listed or not is_new):
                self._wrong(f"it is told that the plane came back empty, with {self._listed} groups, new: {is_new}")
            self._went_on = self._incarnation
        elif isinstance(event, Reaped) and event.silent_s:
            self._burial(event)
        elif isinstance(event, Again) and event.why == "its rows are gone":
            self._absence(event)

    def _burial(self, event: Reaped) -> None:
        """Who says that he lives, and is heard, is not taken for dead; not even by one who was stopped himself."""
        cast = self._cast
        one = cast.clients[event.replica]
        assert isinstance(one, Member)
        awake_s = cast.world.now - max(one.born_at, one.frozen_until)
        mute = sum(cast.world.faults[kind] for kind in ("message_lost", "message_late"))
        if one.alive and awake_s > cast.scenario.config.replica_dead_s + 1.0 and mute < _MUTE:
            self._wrong(f"{event.replica!r} is buried alive: {event}")

    def _absence(self, event: Again) -> None:
        """A group that its generator has committed, and that nobody removed, is not said to be gone."""
        group_id = f"{self._cast.scenario.config.run}.{event.prompt}.{event.attempt - 1}"
        keys = self._cast.book.attempts[group_id].keys if group_id in self._generated else []
        gone = self._cast.plane.removed.keys() | self._cast.plane.forgotten
        if keys and not gone.intersection(keys):
            self._wrong(f"prompt {event.prompt} goes again, though {keys} are there")
