"""The conversation with one reader, over a wire of messages in memory and an owner of the test's own."""

from __future__ import annotations

import asyncio

import pytest

from penstock.endpoint.connection import Buffer
from penstock.errors import DataPlaneNotReady, DataPlaneUnavailable, StaleSlotError, TransportError
from penstock.payload.arena import Reading
from penstock.payload.slots import Mode
from penstock.retry import Deadline
from penstock.transport.serving import ReadServing, ServerLimits
from penstock.transport.slot_protocol import Ack, Code, Request, Status, Verdict, check_payload

SOON_S = 20.0
CONTENT = bytes(range(256)) * 40


class Ends:
    """One end of a connection that carries messages: a part is received whole, into exactly as much room."""

    def __init__(self, inbox: asyncio.Queue[bytes], outbox: asyncio.Queue[bytes]) -> None:
        self.peer = "the test"
        self.broken = False
        self._inbox, self._outbox = inbox, outbox

    async def send(self, *parts: Buffer, deadline: Deadline) -> None:
        for part in parts:
            self._outbox.put_nowait(bytes(part))

    async def recv_into(self, buffer: Buffer, deadline: Deadline) -> None:
        try:
            async with asyncio.timeout(deadline.remaining()):
                message = await self._inbox.get()
        except TimeoutError:
            raise TransportError("nothing came", code="timeout") from None
        assert isinstance(buffer, bytearray)
        if not message:
            raise TransportError("the other end left", code="closed")
        if len(message) != len(buffer):
            raise TransportError(f"{len(message)} bytes came, room is for {len(buffer)}", code="truncated")
        buffer[:] = message

    def abort(self) -> None:
        self._inbox.put_nowait(b"")

    async def close(self) -> None:
        self._outbox.put_nowait(b"")

    async def hear(self) -> bytes:
        """The next message, whatever its length."""
        async with asyncio.timeout(SOON_S):
            return await self._inbox.get()

    def say(self, message: bytes) -> None:
        self._outbox.put_nowait(message)


class Owner:
    """Gives out readings of ``CONTENT`` and keeps how each ended."""

    def __init__(self, refusal: Exception | None = None) -> None:
        self.ends: list[bool] = []
        self._refusal = refusal

    async def begin_read(self, block_id: int, generation: int, mode: Mode) -> Reading:
        if self._refusal is not None:
            raise self._refusal
        return Reading(block_id, generation, 1, memoryview(CONTENT).toreadonly())

    def end_read(self, reading: Reading, *, consumed: bool) -> None:
        self.ends.append(consumed)


def a_connection() -> tuple[Ends, Ends]:
    here: asyncio.Queue[bytes] = asyncio.Queue()
    there: asyncio.Queue[bytes] = asyncio.Queue()
    return Ends(here, there), Ends(there, here)


def served(owner: Owner, *said: bytes) -> tuple[list[bytes], ReadServing]:
    """Let a reader say these messages and leave; return what came back."""

    async def conversation() -> tuple[list[bytes], ReadServing]:
        serving = ReadServing(owner, ServerLimits(), may_consume=True)
        ours, theirs = a_connection()
        for message in (*said, b""):
            ours.say(message)
        await serving.serve(theirs)
        await theirs.close()
        heard = []
        while message := await ours.hear():
            heard.append(message)
        return heard, serving

    return asyncio.run(conversation())


def test_each_record_is_one_message_and_so_is_the_payload() -> None:
    """A wire of messages, which receives into exactly as much room as was sent, carries it all."""
    asked = [Request(1, 5, 1, Mode.CONSUME), Request(2, 5, 1, offset=100, length=7)]
    owner = Owner()
    said = [m for r in asked for m in (r.encode(), Ack(r.request_id, Verdict.CHECKED).encode())]
    heard, serving = served(owner, *said)
    assert [len(message) for message in heard] == [136, len(CONTENT), 136, 7]
    for request, status, payload in zip(asked, heard[::2], heard[1::2], strict=True):
        check_payload(request, Status.decode(status), memoryview(payload))
    assert owner.ends == [True, False]
    assert (serving.counts.acknowledged, serving.counts.consumed, serving.counts.connections) == (2, 1, 0)


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (StaleSlotError("gone"), Code.STALE),
        (DataPlaneNotReady("later"), Code.NOT_READY),
        (DataPlaneUnavailable("the owner sleeps"), Code.ERROR),
    ],
)
def test_what_the_owner_refuses_has_its_code_and_its_words(refusal: Exception, code: Code) -> None:
    """The connection goes on; nothing was begun, so nothing is ended."""
    owner = Owner(refusal)
    heard, serving = served(owner, *(Request(n, 5, 1).encode() for n in (1, 2)))
    assert [Status.decode(message) for message in heard] == [Status(n, code, text=str(refusal)) for n in (1, 2)]
    assert owner.ends == []
    counts = serving.counts
    assert counts.stale + counts.not_ready + counts.failed == 2


@pytest.mark.parametrize("refused", [Request(1, 5, 1, offset=0, length=len(CONTENT) + 1), Request(1, 5, 1, offset=9)])
def test_a_request_that_is_refused_after_it_was_begun_is_released(refused: Request) -> None:
    """As often as it was begun, and never consumed."""
    owner = Owner()
    heard, _ = served(owner, refused.encode())
    assert Status.decode(heard[0]).code is Code.BAD_REQUEST
    assert owner.ends in ([], [False])


def test_a_bug_in_the_middle_of_a_read_ends_it_all_the_same() -> None:
    """Whatever is raised while sending goes to the listener, and the slot is released first."""

    class Broken(Ends):
        async def send(self, *parts: Buffer, deadline: Deadline) -> None:
            raise ZeroDivisionError

    async def conversation() -> None:
        serving = ReadServing(owner, ServerLimits(), may_consume=True)
        inbox: asyncio.Queue[bytes] = asyncio.Queue()
        inbox.put_nowait(Request(1, 5, 1, Mode.CONSUME).encode())
        with pytest.raises(ZeroDivisionError):
            await serving.serve(Broken(inbox, asyncio.Queue()))
        assert (serving.counts.reading, serving.counts.connections, serving.counts.unacknowledged) == (0, 0, 1)

    owner = Owner()
    asyncio.run(conversation())
    assert owner.ends == [False]


@pytest.mark.parametrize("turns", range(8))
def test_a_handler_cancelled_at_any_moment_ends_what_it_began(turns: int) -> None:
    """The listener closes: each read that was begun is ended once, none twice."""

    async def conversation() -> None:
        serving = ReadServing(owner, ServerLimits(), may_consume=True)
        ours, theirs = a_connection()
        ours.say(Request(1, 5, 1, Mode.CONSUME).encode())
        handler = asyncio.create_task(serving.serve(theirs))
        for _ in range(turns):
            await asyncio.sleep(0)
        handler.cancel()
        with pytest.raises(asyncio.CancelledError):
            await handler
        assert serving.counts.reading == 0

    owner = Owner()
    asyncio.run(conversation())
    assert owner.ends in ([], [False])


def test_malformed_bytes_are_answered_and_end_the_conversation() -> None:
    """What follows them is not looked at."""
    owner = Owner()
    heard, serving = served(owner, bytes(56), Request(1, 5, 1).encode())
    (status,) = (Status.decode(message) for message in heard)
    assert (status.code, status.request_id) == (Code.BAD_REQUEST, 0)
    assert (serving.counts.malformed, serving.counts.requests, owner.ends) == (1, 0, [])


def test_a_message_of_another_length_ends_the_conversation() -> None:
    """A wire of messages says so by itself."""
    heard, serving = served(Owner(), bytes(57))
    assert (heard, serving.counts.broken) == ([], 1)


def test_who_leaves_or_asks_nothing_is_not_a_failure() -> None:
    """Leaving between two requests is how connections end; so is being idle for too long."""
    _, left = served(Owner())
    assert (left.counts.broken, left.counts.idle) == (0, 0)

    async def idle() -> ReadServing:
        serving = ReadServing(Owner(), ServerLimits(idle_timeout_s=0.01), may_consume=False)
        await serving.serve(a_connection()[0])
        return serving

    assert asyncio.run(idle()).counts.idle == 1


def test_the_time_for_a_payload_grows_with_its_size() -> None:
    """A large block is not cut off on a slow line, and a small one does not hold its slot for long."""
    limits = ServerLimits(send_timeout_s=5.0, slowest_bytes_per_s=2.0**20)
    assert limits.send_within_s(0) == 5.0
    assert limits.send_within_s(10 << 20) == 15.0
