"""The three layers of a fetch, each a run of the one retry machine inside an attempt of the layer above it.

    batch  (rounds)    all blocks side by side; what failed retryably goes into the next round
    block  (calls)     the block's places, one after the other
    read   (rotation)  the ports of one place's host, in turn, each attempt with a deadline of its own

Invariants: one deadline, the caller's, bounds all three; a place that has answered "stale", or whose bytes came damaged
twice, is not asked again in this batch; a block's failure is that block's alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from penstock.errors import BadArgument, DataPlaneError, DataPlaneReadError, TransportError
from penstock.payload.block import Bytes
from penstock.payload.buffers import Buffers
from penstock.retry import Answer, Deadline, Kind, Reason, RetryResult, Settled
from penstock.transport.config import TransportConfig
from penstock.transport.gate import Gates
from penstock.transport.outcomes import NOT_READY, classify
from penstock.transport.pool import Pool, Port
from penstock.transport.ports import Ports
from penstock.transport.reading import SlotReader
from penstock.transport.slabs import Slabs
from penstock.transport.story import Story
from penstock.transport.timing import Timing
from penstock.transport.wanted import Fetched, Wanted

__all__ = ["Layers"]

_RULES_OUT = frozenset({Reason.MISSING, Reason.FATAL, Reason.CORRUPT})  # ends of a call that a further one cannot mend


class Layers:
    """For the tasks of one event loop."""

    def __init__(self, pool: Pool, ports: Ports, reader: SlotReader, config: TransportConfig, timing: Timing) -> None:
        self._pool, self._ports, self._reader, self._config = pool, ports, reader, config
        self._slabs = Slabs(Buffers(config.keep_buffers_bytes))
        self.gates = Gates(config.max_reads, config.max_bytes_in_flight)
        self.rounds = timing.retrier(config.batch, logging.INFO)
        self.calls = timing.retrier(config.calls, logging.DEBUG)
        self.rotation = timing.retrier(config.rotation, logging.DEBUG)
        self.blocks = self.bytes = 0

    async def fetch(self, wanted: Sequence[Wanted], deadline: Deadline) -> list[Fetched | DataPlaneError]:
        """Return, for each of ``wanted``, the block or why it is not there. A block given twice is read once.

        Raises:
            BadArgument: a buffer is not as long as its block.
        """
        stories: dict[str, Story] = {}
        for one in wanted:
            _require_fit(one)
            stories.setdefault(str(one.block_id), Story(one))

        async def attempt(keys: Sequence[str], _: str, until: Deadline) -> list[Answer[Fetched]]:
            return [await self._block(stories[key], until) for key in keys]

        result: RetryResult[Fetched] = await self.rounds.run("fetch", list(stories), attempt, deadline=deadline)
        outcomes = {key: _outcome(story, result.settled[key], deadline) for key, story in stories.items()}
        return [outcomes[str(one.block_id)] for one in wanted]

    async def _block(self, story: Story, deadline: Deadline) -> Answer[Fetched]:
        """Layer 2: one block in one round."""
        self._refuse_giants(story)
        places = story.places()
        if not places:
            return Answer(Kind.FATAL, code="nowhere")

        async def attempt(_keys: Sequence[str], host: str, until: Deadline) -> list[Answer[Fetched]]:
            return [await self._call(story, host, places[host], until)]

        end = await self.calls.settle("call", story.key, attempt, deadline=deadline, endpoints=list(places))
        return _passed_on(story, end)

    async def _call(self, story: Story, name: str, place: int, deadline: Deadline) -> Answer[Fetched]:
        """Layer 1: one call at one place."""
        if place in story.ruled_out:
            return Answer(Kind.RETRYABLE, code="ruled_out")  # the other places' budget is spent, for this round
        host, _ = story.wanted.places[place]
        ports = self._ports.of(host)
        if not ports:
            words = f"host {host.name} at {host.address} offers no wire that is here"
            story.rule_out(place, TransportError(words, code="refused"))
            return _passed_on(story, Settled(None, Reason.FATAL, "refused", 0))

        async with self.gates.of(host.host_id).passing(story.wanted.nbytes):
            if self.calls.passes_over(name, list(story.places())):  # it has failed others while this one waited
                return Answer(Kind.BACKPRESSURE, code="passed_over")  # which says nothing new of it
            end = await self._rotate(story, place, ports, deadline)
        if end.reason in _RULES_OUT:
            story.rule_out(place)
        return _passed_on(story, end)

    async def _rotate(self, story: Story, place: int, ports: dict[str, Port], deadline: Deadline) -> Settled[Fetched]:
        """The reads of one call. Its ports are chosen when it is its turn: others may have failed there meanwhile."""

        async def attempt(_keys: Sequence[str], port: str, until: Deadline) -> list[Answer[Fetched]]:
            return [await self._read(story, place, ports[port], until)]

        return await self.rotation.settle("read", story.key, attempt, deadline=deadline, endpoints=list(ports))

    async def _read(self, story: Story, place: int, port: Port, deadline: Deadline) -> Answer[Fetched]:
        """One attempt."""
        story.reads += 1
        until = deadline.within(self._config.attempt_s(story.wanted.nbytes))
        try:
            return Answer(Kind.OK, await self._received(story, place, port, until))
        except DataPlaneError as failed:
            story.note(failed)
            kind, code = classify(failed)
            return Answer(kind, code=code)

    async def _received(self, story: Story, place: int, port: Port, deadline: Deadline) -> Fetched:
        wanted = story.wanted
        host, generation = wanted.places[place]
        async with self._pool.connection(port, deadline) as lease:
            header, out = await self._reader.read(lease, wanted, generation, partial(self._memory, wanted), deadline)
        self.blocks += 1
        self.bytes += wanted.nbytes
        return Fetched(wanted.block_id, header, out, host.host_id, story.damaged())

    def let_go(self) -> None:
        """Nothing more is fetched: return what memory was kept for that."""
        self._slabs.clear()

    def _memory(self, wanted: Wanted) -> Bytes:
        """Return memory for one attempt: the caller's, or else of our own, and then for each attempt another.

        What of a failed one is written off (UCX that does not let go of it) may still be written to.
        """
        if wanted.buffer is not None:
            return wanted.buffer
        try:
            return self._slabs.take(wanted.nbytes)
        except MemoryError:
            words = f"there is no memory for the {wanted.nbytes} bytes of block {wanted.block_id}"
            raise DataPlaneReadError(words) from None

    def _refuse_giants(self, story: Story) -> None:
        nbytes, limit = story.wanted.nbytes, self._config.max_block_bytes
        if 0 < nbytes <= limit:
            return
        for place in story.places().values():
            words = f"{story!r} is said to have {nbytes} bytes; between 1 and {limit} are taken"
            story.rule_out(place, DataPlaneReadError(words))

    def __repr__(self) -> str:
        return f"Layers({self.blocks} blocks, {self.bytes} bytes, {self.gates!r})"


def _passed_on(story: Story, end: Settled[Fetched]) -> Answer[Fetched]:
    """What the end of a run means to the layer above it: a ruled-out place leaves the others."""
    if end.reason is None:
        return Answer(Kind.OK, end.value, end.code)
    if not story.places():
        return Answer(Kind.FATAL, code=end.code)
    return Answer(Kind.BACKPRESSURE if end.code == NOT_READY else Kind.RETRYABLE, code=end.code)


def _outcome(story: Story, end: Settled[Fetched], deadline: Deadline) -> Fetched | DataPlaneError:
    if end.reason is None:
        assert end.value is not None, "a success without its value"
        return end.value
    return story.verdict(deadline)


def _require_fit(wanted: Wanted) -> None:
    if wanted.buffer is not None and len(wanted.buffer) != wanted.nbytes:
        raise BadArgument(
            f"block {wanted.block_id} has {wanted.nbytes} bytes, and the buffer for it {len(wanted.buffer)}"
        )
