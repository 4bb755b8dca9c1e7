"""The moments of Penstock's protocols at which a fault may strike: a closed table, and the hook that says "now".

Code that hands something over says where it is with ``reached(point)``. That does nothing, at the cost of one global
load and a call, until ``testing`` has installed a hook; there is one at most, and nothing else may install it.

Invariants: a point stands in the table and is called in its room, and nowhere else; none is reached once per row, and
none in a pure machine. A name without a dot is not the table's: tests name points of their own with such.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from penstock.errors import BadArgument

__all__ = ["POINTS", "Hook", "Point", "install", "reached"]

Hook: TypeAlias = Callable[[str], None]


class Point(NamedTuple):
    """One moment. ``name``: "role.moment"; ``room``: whose code reaches it; ``says``: what is done, what is not yet."""

    name: str
    room: str
    says: str

    @property
    def role(self) -> str:
        """Who is there: the part of the name before the dot."""
        return self.name.partition(".")[0]


_hook: Hook | None = None


def reached(point: str) -> None:
    """Say that this process is at ``point``; without a hook, nothing happens."""
    if _hook is not None:
        _hook(point)


def install(hook: Hook) -> Callable[[], None]:
    """Call ``hook`` with every point that is reached from now on, in whatever thread; return what ends that.

    Raises:
        BadArgument: a hook is installed.
    """
    global _hook  # noqa: PLW0603 - the one place where a test reaches into the code
    if _hook is not None:
        raise BadArgument(f"a hook is installed already: {_hook!r}")
    _hook = hook

    def restore() -> None:
        global _hook  # noqa: PLW0603
        if _hook is hook:
            _hook = None

    return restore


POINTS = (
    # -- a client's call ----------------------------------------------------------------------------------------------
    Point("client.putting", "plane", "A put's columns are laid out; the plane has not been asked for room."),
    Point("client.granted", "plane", "The plane has granted a slot; nothing has been copied into it."),
    Point("client.copied", "plane", "The block lies in its slot; the commit has not been sent."),
    Point("client.put", "plane", "The commit has been answered; the caller has not been told."),
    Point("client.tagging", "plane", "A put of tags alone is about to be sent."),
    Point("client.tagged", "plane", "A put of tags alone has been answered; the caller has not been told."),
    Point("client.claimed", "plane", "A claim has been answered; the caller does not have its rows yet."),
    Point("client.reading", "plane", "A read is about to be sent; nothing is located, nothing pinned."),
    Point("client.pinned", "plane", "The blocks of a read are located and pinned; none has been opened."),
    Point("client.read", "plane", "The columns of a read are put together; the caller does not have them yet."),
    Point("client.acking", "plane", "An ack is about to be sent."),
    Point("client.acked", "plane", "An ack has been answered; the caller has not been told."),
    Point("client.popping", "plane", "A pop is about to be sent."),
    Point("client.popped", "plane", "A pop has been answered; the caller has not been told."),
    # -- the plane's process ------------------------------------------------------------------------------------------
    Point("server.received", "server", "A call has been read off its socket; nothing has been decided."),
    Point("server.decided", "server", "The ledger has changed; its record is buffered, not in the journal."),
    Point("server.journaled", "server", "A batch is in the journal; no reply has left, no slot has been touched."),
    Point("server.replied", "server", "A batch has been carried out, and its replies have left."),
    Point("server.granted", "server", "A slot is found for a grant; its client has not been told."),
    Point("server.filled", "server", "A committed block's slot is open to readers; the put has not been answered."),
    Point("server.freed", "server", "A block's last row is gone and its slot given back; what ended it is unanswered."),
    Point("server.moved", "server", "A block lies elsewhere, says the journal; what it came from still stands."),
    Point("server.checkpointing", "server", "A checkpoint is begun; nothing has been restated in it."),
    Point("server.restated", "server", "A slice of a checkpoint is buffered; more of it may follow."),
    Point("server.checkpointed", "server", "A checkpoint is finished; the segments before it are gone."),
    Point("server.replayed", "server", "The journal has been replayed; nothing of the new life is written."),
    Point("server.recovered", "server", "The new life stands in the journal; its socket is not there yet."),
    Point("server.listening", "server", "The socket takes connections; whoever started the plane has not been told."),
    Point("server.stopping", "server", "A clean end has been asked for; socket and connections still stand."),
    Point("server.parted", "server", "Socket and connections are closed; live blocks lie in shared memory alone."),
    Point("server.rescued", "server", "Live blocks lie in the data directory, says the journal; shared memory stands."),
    Point("server.ended", "server", "Shared memory is let go of; the journal is open, the lock is held."),
    # -- the journal --------------------------------------------------------------------------------------------------
    Point("journal.written", "ledger", "The kernel has the buffered entries; nothing that waits for them is done."),
    Point("journal.rotated", "ledger", "A segment has been made; it holds its header alone."),
    Point("journal.rebased", "ledger", "The segments before a checkpoint have stopped counting; they still lie there."),
    # -- a host's agent -----------------------------------------------------------------------------------------------
    Point("host.enlisted", "host", "The plane has said what rows need of this host; nothing of it has been looked at."),
    Point("host.recovered", "host", "What earlier lives left is taken over; clients are not served yet."),
    Point("host.listening", "host", "Clients are served; whoever started the agent has not been told."),
    Point("host.sealed", "host", "A written block's slot is open to readers; its writer has not been answered."),
    Point("host.pulled", "host", "A copy is pulled and verified; its slot is not open, who asked for it is not told."),
    Point("host.ordered", "host", "The plane's orders have come; none is carried out."),
    Point("host.leaving", "host", "A clean end: nobody is served any more; blocks lie in shared memory alone."),
    Point("host.ended", "host", "Whatever may be needed lies in files; shared memory is let go of, the lock is held."),
    # -- a store's agent ----------------------------------------------------------------------------------------------
    Point("store.enlisted", "host", "The plane has said what rows need of the store; nothing has been looked for."),
    Point("store.freeing", "host", "Blocks that nothing needs are about to be removed; the plane does not know."),
    # -- a host's payload server ---------------------------------------------------------------------------------------
    Point("host.sending", "transport", "A remote read has its token; neither status nor payload has been sent."),
    Point("host.sent", "transport", "A payload has been sent; whether it has arrived is not known."),
    Point("host.acknowledged", "transport", "A payload is acknowledged; its slot is still being read."),
    # -- the controller -----------------------------------------------------------------------------------------------
    Point("controller.recovering", "controller", "The plane is back; nothing has been rebuilt from it."),
    Point("controller.saved", "controller", "The controller's record is durable; nothing of it has been done."),
    Point("controller.dispatched", "controller", "A prompt is with a generator; nothing is known of its group yet."),
    Point("controller.listed", "controller", "The plane's groups have been listed; none is chosen or evicted."),
    Point("controller.evicted", "controller", "Stale groups are evicted; the controller's own books do not say so."),
    Point("controller.claimed", "controller", "A step's rows are leased; the trainer does not know of them."),
    Point("controller.ordered", "controller", "The trainer has been told the step; it has not answered."),
    Point("controller.recorded", "controller", "A step is durable; its rows are not popped."),
    Point("controller.popped", "controller", "A step's rows are popped; the controller's record does not say so."),
    Point("controller.settled", "controller", "A step is finished and recorded; its weights are not published."),
    # -- the demo's roles ---------------------------------------------------------------------------------------------
    Point("worker.generated", "demo", "Answers are generated; nothing of their groups has been put."),
    Point("worker.put", "demo", "A worker's rows are put; their groups are not committed."),
    Point("worker.committed", "demo", "A worker's groups are committed; the controller has not been told."),
    Point("scorer.claimed", "demo", "The scorer holds its rows; it has not read them."),
    Point("scorer.put", "demo", "The scorer's column is put; its rows are not acked."),
    Point("scorer.acked", "demo", "The scorer's rows are acked."),
    Point("trainer.read", "demo", "A step's rows are read; no weight has changed."),
    Point("trainer.stepped", "demo", "The optimizer has stepped, in memory alone; nothing is saved."),
    Point("trainer.saved", "demo", "Weights and record of a step are durable; the controller has not been told."),
)
