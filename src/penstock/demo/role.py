"""A role's process: ``python -m penstock.demo.role KIND RUN_DIR PEER PARENT_PID [STAGE_FD]``.

Letters come in on stdin and go out on stdout, one JSON line each; anything else that prints goes to the log.
Invariants: the process ends with its parent, however that ends; the end of letters is the order to end; orders are
carried out one after another, whoever gave them, and answered to who did.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import msgspec

from penstock.demo.messages import (
    LAUNCHER,
    Answer,
    Become,
    Hello,
    Here,
    Letter,
    Note,
    Order,
    Ready,
    Rollout,
    Train,
    Worked,
    letter,
)
from penstock.demo.processes import MUTE, kind_of, slot_of
from penstock.demo.reaching import connect
from penstock.demo.spec import RunFiles
from penstock.errors import BadArgument, DataPlaneUnavailable, UnknownName
from penstock.plane.contract import DataPlaneClient
from penstock.testing.checker import EventLog
from penstock.testing.injection import take_part

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PAUSE_S = 0.1


class Channel:
    """The two pipes to the launcher. ``me``: the peer that speaks and is spoken to."""

    def __init__(self, me: str) -> None:
        self.me = me
        self._out = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)  # a library that prints must not speak in our name

    def note(self, note: Note) -> None:
        """Tell the launcher."""
        self.send(letter(LAUNCHER, self.me, note))

    def serve(self, carry_out: Callable[[Order], Answer]) -> None:
        """Carry out orders until the launcher closes the pipe."""
        self.note(Ready())
        for order, asked in self.orders():
            self.send(letter(asked.sender, self.me, carry_out(order), asked.number))
            if not isinstance(order, Hello):
                self.note(Worked(time.monotonic()))

    def orders(self) -> Iterator[tuple[Order, Letter]]:
        """Yield orders, each with the letter it came in, until the launcher closes the pipe."""
        letters, orders = msgspec.json.Decoder(Letter), msgspec.json.Decoder[Order](Order)
        for line in sys.stdin.buffer:
            if line.endswith(b"\n"):
                found = letters.decode(line)
                yield orders.decode(found.body), found

    def is_over(self) -> bool:
        """Whether the pipe is closed, for a role that takes no orders."""
        return bool(select.select([sys.stdin], [], [], 0)[0])

    def send(self, line: bytes) -> None:
        """Send a whole letter."""
        self._out.write(line)
        self._out.flush()


def work(files: RunFiles, client: DataPlaneClient, log: EventLog, channel: Channel) -> None:
    """Roll out prompts until the orders end."""
    from penstock.demo.worker import Worker

    worker = Worker(files, client, log)

    def carry_out(order: Order) -> Answer:
        match order:
            case Hello():
                return Here()
            case Rollout():
                return worker.roll_out(order)
        raise BadArgument(f"a worker was ordered to {type(order).__name__}")

    channel.serve(carry_out)


def train(files: RunFiles, client: DataPlaneClient, log: EventLog, channel: Channel) -> None:
    """Make training steps until the orders end."""
    from penstock.demo.trainer import Trainer

    trainer = Trainer(files, client, log)

    def carry_out(order: Order) -> Answer:
        match order:
            case Hello():
                return Here(trainer.record)
            case Train():
                return trainer.train(order)
        raise BadArgument(f"the trainer was ordered to {type(order).__name__}")

    channel.serve(carry_out)


def score(files: RunFiles, client: DataPlaneClient, _log: EventLog, channel: Channel) -> None:
    """Score what is ready until the orders end."""
    from penstock.demo.scorer import Scorer

    scorer = Scorer(files, client)
    channel.note(Ready())
    while not channel.is_over():
        try:
            if scorer.score_next():
                channel.note(Worked(time.monotonic()))
        except (DataPlaneUnavailable, UnknownName):  # it is away; or the controller has not registered anything yet
            time.sleep(PAUSE_S)


ROLES = {"worker": work, "trainer": train, "scorer": score}


def main(kind: str, root: Path, peer: str, parent: int, stage: int | None = None) -> None:
    """Be ``peer`` until the launcher ends it. ``stage``: where a director hears of its points; None = nobody does."""
    files = RunFiles(root)
    end_with(parent, signal.SIGTERM if kind in MUTE else signal.SIGKILL)
    if stage is not None:
        take_part(stage)
    if kind == "plane":
        serve(files)
    if kind == "host":
        serve_host(files, slot_of(peer))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    channel = Channel(peer)
    if kind == "controller":
        from penstock.demo.steering import steer

        steer(files, channel)
        return
    _one_thread()
    if kind == "spare":
        peer = channel.me = stand_by(files, channel)
    with connect(files, peer) as client, EventLog(files.journals / f"{peer}.jsonl") as log:
        ROLES[kind_of(peer)](files, client, log, channel)


def stand_by(files: RunFiles, channel: Channel) -> str:
    """Import what takes seconds, then wait to be told which peer to be; the end of orders ends the process."""
    _import_all()
    order, _ = next(channel.orders(), (None, None))
    if order is None:
        sys.exit(0)
    if not isinstance(order, Become):
        raise BadArgument(f"a spare was ordered to {type(order).__name__}")
    with (files.logs / f"{slot_of(order.peer)}.log").open("ab") as log:
        os.dup2(log.fileno(), 2)
    os.dup2(2, 1)
    return order.peer


def _import_all() -> None:
    import tensordict  # noqa: F401
    import torch

    import penstock.demo.scorer
    import penstock.demo.trainer
    import penstock.demo.worker  # noqa: F401

    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # imports the compiler: as long as torch itself


def serve(files: RunFiles) -> NoReturn:
    """Be the run's plane: ``penstock serve``, in this process, so that its points are heard; exit as it does."""
    from penstock.ops.cli import main as penstock

    spec = files.spec()
    options = [word for option in spec.plane for word in ("--set", option)]
    if spec.hosts:
        options += ["--listen", f"{spec.hosts[0]}:{spec.port}"]
    sys.argv[:] = ["penstock", "serve", "--data-dir", str(files.plane), *options]
    penstock()
    sys.exit(0)


def serve_host(files: RunFiles, slot: str) -> NoReturn:
    """Be a host's agent: ``penstock host``, in this process; exit as it does."""
    from penstock.ops.cli import main as penstock

    spec, number = files.spec(), int(slot.partition("-")[2])
    where = ["--dir", str(files.host(number)), "--address", spec.hosts[number]]
    sys.argv[:] = ["penstock", "host", "--plane", spec.url, "--token-file", str(files.token), *where]
    penstock()
    sys.exit(0)


def end_with(parent: int, by: signal.Signals) -> None:
    """Ask the kernel to send ``by`` to this process when the thread that made it ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(by), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it ended before we asked
        sys.exit(f"the launcher {parent} has ended")


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)  # the roles share few cores; more threads would only wait for each other


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), *map(int, sys.argv[5:6]))
