"""The controller's process: it steers the run from metadata alone, and never imports torch.

Invariant: what it must know of the roles it asks them, so that it may be killed like any of them.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from penstock.controller.event_file import EventFile
from penstock.demo.controller_loop import Controller
from penstock.demo.messages import (
    LAUNCHER,
    Answer,
    Heard,
    Hello,
    Joined,
    Left,
    Letter,
    News,
    Order,
    Ready,
    letter,
)
from penstock.demo.processes import kind_of
from penstock.demo.role import connect
from penstock.demo.spec import PARTITION, SCORE_TASK, TRAIN_FIELDS, TRAIN_TASK, RunFiles
from penstock.testing.checker import EventLog

if TYPE_CHECKING:
    from penstock.demo.role import Channel

__all__ = ["steer"]


def steer(files: RunFiles, channel: Channel) -> None:
    """Steer until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    spec = files.spec()

    def send(peer: str, order: Order) -> None:
        channel.send(letter(peer, channel.me, order))

    log = EventLog(files.journals / f"{channel.me}.jsonl")
    with connect(files, "controller", "demo") as client, log, EventFile(files.events) as tell:
        client.register_partition(PARTITION, TRAIN_FIELDS, 0, [SCORE_TASK, TRAIN_TASK], grpo_group_size=spec.group_size)
        controller = Controller(spec, client, send, log, tell)
        threading.Thread(target=_listen, args=(controller, send), daemon=True).start()
        channel.note(Ready())
        controller.run(stop)


def _listen(controller: Controller, send: object) -> None:
    assert callable(send)
    letters, news = msgspec.json.Decoder(Letter), msgspec.json.Decoder[News](News)
    answers: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)
    for line in _lines():
        found = letters.decode(line)
        if found.sender != LAUNCHER:
            controller.inbox.put(Heard(found.sender, answers.decode(found.body)))
            continue
        match news.decode(found.body):
            case Joined(peer) if kind_of(peer) in {"worker", "trainer"}:
                send(peer, Hello())
            case Left() as left:
                controller.inbox.put(left)


def _lines() -> Iterator[bytes]:
    rest = b""
    while new := os.read(0, 1 << 16):
        *lines, rest = (rest + new).split(b"\n")
        yield from lines
