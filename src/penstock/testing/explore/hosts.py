"""Puts on two hosts, driven side by side with a model of where each block must lie and with twins of the agents.

A twin holds blocks as an agent does: sealed by a writer, asked about once he has let go, adopted by the plane's word;
its memory outlives its process. Checked after each action: replies and places are the predicted ones; whatever rows
need lies physically where the ledger says, unless it was damaged and nobody has said so yet. And from every state,
once all agents have come back and said and heard everything, each host holds what rows need there and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from penstock.config import PlaneConfig
from penstock.ledger import events as ev
from penstock.ledger.machine import Ledger
from penstock.requests import (
    BlockPlace,
    Commit,
    Done,
    Enlist,
    Enlisted,
    FieldSpec,
    Grant,
    GrantAgain,
    Granted,
    HostPlace,
    HostReport,
    Orders,
    Pop,
    RegisterPartition,
    ReplyBody,
    Tokens,
)
from penstock.testing.explore.shell import Action, Client, Disagreement, LedgerFactory, Shell
from penstock.testing.sim.recovery import differences, state_of

__all__ = ["HostRig", "HostShape"]

_PARTITION = "p"
_GRACE_S = 1.0
_TICK_S = 0.9  # twice is longer than the grace; once is shorter than what the ledger takes for a stop of the plane
_NBYTES = 8
_ROUNDS = 8  # of reports, within which everything must have been said
_KINDS = {"one": (1, 1), "two": (2, 1), "both": (2, 2)}  # how many places a put wants, and needs


@dataclass(frozen=True, slots=True)
class HostShape:
    """A small configuration: the kinds of puts from host 1 (see ``_KINDS``) that there may be, one after the other."""

    name: str
    puts: tuple[str, ...]
    depth: int
    start: tuple[Action, ...] = (("enlist", 1), ("enlist", 2))

    def rig(self, make_ledger: LedgerFactory) -> HostRig:
        return HostRig(self, make_ledger)


class _Twin:
    """An agent and its memory. ``news``: blocks that it found damaged; ``call``: its report that waits."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.client = Client(f"H{number}", 10 + number)
        self.life = 1
        self.alive = True
        self.enlisted = False
        self.after = 0
        self.blocks: dict[int, str] = {}  # block -> sealed, asked or adopted
        self.news: set[int] = set()
        self.call = 0
        self.said = HostReport(0)

    @property
    def place(self) -> HostPlace:
        return HostPlace(self.number, self.life, f"h{self.number}", "a", [1])

    def hears(self, orders: Orders, said: HostReport) -> None:
        """Carry out what the plane wants; it knows now what it was ``said``."""
        self.news -= set(said.lost)
        for block in orders.adopt:
            self.adopts(block)
        for block in orders.free:
            self.blocks.pop(block, None)
        self.after = max(self.after, orders.number)

    def adopts(self, block: int) -> None:
        if block in self.blocks:
            self.blocks[block] = "adopted"
        else:
            self.news.add(block)

    def is_taken_in(self, enlisted: Enlisted, is_new: bool) -> None:
        """What the plane does not name is not needed; a new life knows no writers."""
        live = [place.block_id for place in enlisted.live]
        self.after = enlisted.after
        for block in [b for b, what in self.blocks.items() if b not in live and (is_new or what == "adopted")]:
            del self.blocks[block]
        for block in live:
            self.adopts(block)


@dataclass(slots=True)
class _Attempt:
    """A put under way. ``lives``: of the granted hosts; ``over``: the ledger has given it up."""

    key: str
    kind: str
    block: int
    lives: dict[int, int]
    places: list[int] = field(default_factory=list)
    over: bool = False


@dataclass(slots=True)
class _Block:
    """A committed put's block: the hosts on which rows need it, the first first; ``state``: of its row."""

    number: int
    hosts: list[int]
    state: str = "live"


class HostRig:
    """One path through the state space."""

    def __init__(self, shape: HostShape, make_ledger: LedgerFactory = Ledger) -> None:
        self.shape = shape
        config = PlaneConfig(dead_after_s=1e6, resume_grace_s=_GRACE_S, host_grace_s=_GRACE_S, abandon_grace_s=1e6)
        self._shell = Shell(config, make_ledger)
        self._writer = Client("A", 1)
        self._shell.open(self._writer)
        self._shell.ask(self._writer, RegisterPartition(_PARTITION, ["f"], 1, ["train"]))
        self._twins = {number: _Twin(number) for number in (1, 2)}
        self._known: dict[int, tuple[str, int]] = {}  # what the ledger is to think of a host: state and life
        self._blocks: dict[str, _Block] = {}
        self._attempt: _Attempt | None = None
        self._puts = 0
        self._action: Action = ()

    @property
    def ledger(self) -> Ledger:
        return self._shell.ledger

    # -- what may happen next -----------------------------------------------------------------------------------------

    def enabled(self) -> list[Action]:
        """Every action that means something here."""
        actions: list[Action] = [("crash",)]
        if self._attempt is None:
            if self._puts < len(self.shape.puts):
                actions.append(("grant",))
        else:
            sealed = self._attempt.places
            actions += [("commit",) if sealed else ("seal",)] if sealed or self._twins[1].alive else []
            actions.append(("let_go",))
        actions += [("pop", key) for key, block in self._blocks.items() if block.state == "live"]
        if any(state == "silent" for state, _ in self._known.values()):
            actions.append(("grace",))
        for number, twin in self._twins.items():
            actions += self._of(number, twin)
        return actions

    def _of(self, number: int, twin: _Twin) -> list[Action]:
        actions: list[Action] = [("die", number)] if twin.alive else []
        if not twin.enlisted:
            return [*actions, ("enlist", number)]
        actions += [("cut", number), ("report", number), ("report_unheard", number)]
        return actions + [("damage", number, block) for block, what in twin.blocks.items() if what == "adopted"]

    def canonical(self) -> object:
        """This state up to the names of blocks and numbers: equal states have equal futures."""
        names: dict[int, int] = {}

        def name(block: int) -> int:
            return names.setdefault(block, len(names))

        rows = tuple((key, block.state, name(block.number), tuple(block.hosts)) for key, block in self._blocks.items())
        attempt = self._attempt
        waits = attempt and (
            attempt.kind, name(attempt.block), tuple(attempt.places), attempt.over,
            tuple((h, life == self._twins[h].life, life == self._known[h][1]) for h, life in attempt.lives.items()),
        )  # fmt: skip
        hosts = tuple(self._canonical_host(number, twin, name) for number, twin in self._twins.items())
        return rows, waits, hosts, self._puts

    def _canonical_host(self, number: int, twin: _Twin, name: Callable[[int], int]) -> object:
        host = state_of(self.ledger).hosts.get(number)
        orders = None if host is None else host.orders()
        ordered = orders and (tuple(map(name, orders.adopt)), tuple(map(name, orders.free)))
        known = self._known.get(number)
        blocks = tuple(sorted((name(b), what) for b, what in twin.blocks.items()))
        news = tuple(sorted(map(name, twin.news)))
        is_known = known and (known[0], known[1] == twin.life)
        return twin.alive, twin.enlisted, bool(twin.call), blocks, news, ordered, is_known

    # -- one step -----------------------------------------------------------------------------------------------------

    def apply(self, action: Action, checked: bool = True) -> None:
        """Do it. Raises ``Disagreement`` where ledger and model part; the ledger's own assertions pass through."""
        self._action = action
        getattr(self, f"_do_{action[0]}")(*action[1:])
        for twin in self._twins.values():
            self._poll(twin)
        if checked:
            self.ledger.check_invariants()
            self._compare_state()

    def _do_grant(self) -> None:
        kind = self.shape.puts[self._puts]
        self._puts += 1
        wants, needs = _KINDS[kind]
        key = f"k{self._puts}"
        body = Grant(_PARTITION, [key], [FieldSpec("f", "int64", 1)], [], _NBYTES, [_NBYTES], None, 1, wants, needs)
        reply = self._shell.question(self._writer, body)
        up = [number for number in self._twins if self._known.get(number, ("", 0))[0] == "up"]
        expected = up[:wants] if 1 in up else []
        if len(expected) < needs:
            self._must(not isinstance(reply, Granted), "a refusal", reply)
            return
        assert isinstance(reply, Granted), reply
        hosts = [reply.place.host] + ([reply.replica.host_id] if reply.replica is not None else [])
        self._must(hosts == expected, f"hosts {expected}", reply)
        self._attempt = _Attempt(key, kind, reply.grant, {h: self._known[h][1] for h in hosts})

    def _do_seal(self) -> None:
        """The writer has copied; his host's agent seals, and has the second pull."""
        attempt = self._attempt
        assert attempt is not None
        attempt.places = [number for number in attempt.lives if self._twins[number].alive]
        for number in attempt.places:
            self._twins[number].blocks[attempt.block] = "sealed"

    def _do_commit(self) -> None:
        attempt = self._attempt
        assert attempt is not None
        _, needs = _KINDS[attempt.kind]
        if len(attempt.places) < needs:
            self._do_let_go()
            return
        places = [BlockPlace(attempt.block, 0, 0, _NBYTES, 1, host=number) for number in attempt.places]
        reply = self._shell.ask(self._writer, Commit(attempt.block, attempt.block, places))
        kept = [h for h in attempt.places if self._known[h] in (("up", attempt.lives[h]), ("silent", attempt.lives[h]))]
        certain = [h for h in kept if self._known[h][0] == "up"]
        if attempt.over or len(certain) < needs:
            self._must(isinstance(reply, GrantAgain), "another grant", reply)
        else:
            self._must(isinstance(reply, Done), "done", reply)
            self._blocks[attempt.key] = _Block(attempt.block, kept)
        self._do_let_go()

    def _do_let_go(self) -> None:
        """The writer is done with the memory, whatever came of it; the second host's copy is nobody's to hold."""
        attempt, self._attempt = self._attempt, None
        assert attempt is not None
        for twin in self._twins.values():
            if twin.blocks.get(attempt.block) == "sealed":
                twin.blocks[attempt.block] = "asked"

    def _do_pop(self, key: str) -> None:
        reply = self._shell.ask(self._writer, Pop(_PARTITION, [key], Tokens([], [])))
        self._must(isinstance(reply, Done), "done", reply)
        self._blocks[key].state = "trained"

    def _do_damage(self, number: int, block: int) -> None:
        """The agent finds a block of its damaged, and lets go of the bytes."""
        del self._twins[number].blocks[block]
        self._twins[number].news.add(block)

    # -- agents -------------------------------------------------------------------------------------------------------

    def _do_enlist(self, number: int) -> None:
        """The agent comes, or comes back; one that had died, in its next life."""
        twin = self._twins[number]
        is_new = not twin.alive
        if is_new:
            twin.alive, twin.life = True, twin.life + 1
            twin.news.clear()
        self._shell.open(twin.client)
        reply = self._shell.question(twin.client, Enlist(twin.place))
        self._must(isinstance(reply, Enlisted), "the blocks that rows need", reply)
        assert isinstance(reply, Enlisted)
        needed = [b.number for b in self._blocks.values() if b.state == "live" and number in b.hosts]
        self._must([place.block_id for place in reply.live] == needed, f"blocks {needed}", reply)
        if self._attempt is not None and number == 1 and self._attempt.lives[1] != twin.life:
            self._attempt.over = True
        self._known[number] = ("up", twin.life)
        twin.enlisted, twin.call = True, 0
        twin.is_taken_in(reply, is_new)

    def _do_cut(self, number: int) -> None:
        """The agent's session ends; it lives."""
        twin = self._twins[number]
        twin.enlisted, twin.call = False, 0
        self._known[number] = ("silent", self._known[number][1])
        self._shell.handle(ev.SessionGone(twin.client.session_id, "silent"))

    def _do_die(self, number: int) -> None:
        if self._twins[number].enlisted:
            self._do_cut(number)
        self._twins[number].alive = False

    def _do_report(self, number: int) -> None:
        twin = self._twins[number]
        self._say(twin)
        self._poll(twin)

    def _do_report_unheard(self, number: int) -> None:
        """What the plane answers is lost with the connection; the session resumes."""
        twin = self._twins[number]
        self._say(twin)
        self._shell.taken(twin.call)
        self._shell.handle(ev.Withdrawn(frozenset({twin.call})))
        self._shell.taken(twin.call)
        twin.call = 0

    def _say(self, twin: _Twin) -> None:
        asked = [block for block, what in twin.blocks.items() if what == "asked"]
        older, said = twin.call, twin.said
        twin.said = HostReport(twin.after, done_with=asked, lost=sorted(twin.news))
        attempt = self._attempt
        if attempt is not None and attempt.block in (*(asked if twin.number == 1 else ()), *twin.said.lost):
            attempt.over = True
        for block in twin.said.lost:
            self._leaves(block, twin.number)
        twin.call = self._shell.post(twin.client, twin.said)
        if older:  # it is answered now, with nothing
            orders = self._shell.taken(older)
            assert isinstance(orders, Orders), orders
            twin.hears(orders, said)

    def _poll(self, twin: _Twin) -> None:
        """Hear the answer to the report that waits, if it has come."""
        reply = self._shell.taken(twin.call) if twin.call else None
        if isinstance(reply, Orders):
            twin.call = 0
            twin.hears(reply, twin.said)

    # -- time and the plane -------------------------------------------------------------------------------------------

    def _do_grace(self) -> None:
        """Time passes beyond the grace of every host that is silent."""
        for number, (state, life) in list(self._known.items()):
            if state == "silent":
                self._known[number] = ("gone", life)
                if self._attempt is not None and number == 1:
                    self._attempt.over = True
                for block in self._blocks.values():
                    self._leaves(block.number, number)
        for _ in range(2):
            self._shell.now += _TICK_S
            self._shell.handle(ev.Tick(self._shell.now))

    def _leaves(self, number: int, host: int) -> None:
        """The block does not lie on that host any more."""
        for block in self._blocks.values():
            if block.number == number and block.state == "live" and host in block.hosts:
                block.hosts.remove(host)
                block.state = "live" if block.hosts else "lost"

    def _do_crash(self) -> None:
        """Kill -9 of the plane: hosts are silent until they enlist again, grants are forgotten."""
        self._shell.crash()
        self._must(self._shell.resume(self._writer.session_id, self._writer.secret), "a welcome", "a refusal")
        self._known = {number: ("silent", life) for number, (_, life) in self._known.items()}
        for twin in self._twins.values():
            twin.enlisted, twin.call = False, 0
        if self._attempt is not None:
            self._attempt.over = True

    # -- comparison ---------------------------------------------------------------------------------------------------

    def _compare_state(self) -> None:
        partition = state_of(self.ledger).partitions[_PARTITION]
        for key, block in self._blocks.items():
            row = partition.rows.get(key)
            stone = partition.tombstones.get(key)
            now = "live" if row is not None else stone.reason if stone is not None else "forgotten"
            self._must(now == block.state, f"row {key} {block.state}", now)
            if row is None:
                continue
            ((write, _),) = row.pairs()
            lies = [place.host for place in write.places()]
            self._must(lies == block.hosts, f"block of {key} on hosts {block.hosts}", lies)
            for number in lies:
                twin = self._twins[number]
                there = block.number in twin.blocks or block.number in twin.news
                self._must(there, f"block of {key} in the memory of host {number}", sorted(twin.blocks))
        for number, (state, life) in self._known.items():
            host = state_of(self.ledger).hosts[number]
            self._must((host.state, host.place.life) == (state, life), f"host {number} {state}", host.state)

    def check_recovery(self) -> None:
        """What journal and checkpoint give back is what is; and everything comes to rest. The rig is spent then."""
        for what, entries in (("recover", self._shell.entries), ("checkpoint", list(self.ledger.checkpoint(1)))):
            self._action = (what,)
            found = differences(self.ledger, self._shell.replayed(entries))
            self._must(not found, "the state that was", "; ".join(found))
        self._action = ("rest",)
        self._rest()

    def _rest(self) -> None:
        """Every agent comes back, and says and hears what there is, a few times over."""
        if self._attempt is not None:
            self._do_let_go()
        for number, twin in self._twins.items():
            if not twin.enlisted:
                self._do_enlist(number)
        for _ in range(_ROUNDS):
            for number in self._twins:
                self._do_report(number)
        self.ledger.check_invariants()
        self._compare_state()
        for number, twin in self._twins.items():
            needed = {b.number: "adopted" for b in self._blocks.values() if b.state == "live" and number in b.hosts}
            self._must(twin.blocks == needed, f"host {number} to hold {needed}", twin.blocks)
            self._must(not twin.news, f"host {number} to have nothing to say", twin.news)

    def _must(self, holds: bool, expected: object, got: ReplyBody | object) -> None:
        if not holds:
            raise Disagreement(f"{' '.join(map(str, self._action))}: expected {expected}, got {got}")
