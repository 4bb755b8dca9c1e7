"""When the registrar's actor leaves, without Ray."""

from __future__ import annotations

import threading

from penstock.config import PlaneConfig
from penstock.plane.transfer_queue.registrar_actor import GONE_LOOKS, RegistrarActor

WAIT_S = 20.0


class World:
    """The actor's surroundings: each look happens when the test says so."""

    def __init__(self) -> None:
        self.controller_is_gone = False
        self.left = threading.Event()
        self._go, self._looking = threading.Semaphore(0), threading.Semaphore(0)
        self.actor = RegistrarActor(
            PlaneConfig(durability="memory"),
            "c1",
            is_gone=lambda controller: controller == "c1" and self.controller_is_gone,
            leave=self.left.set,
            pause=self._pause,
        )
        assert self._looking.acquire(timeout=WAIT_S)

    def _pause(self, _seconds: float) -> None:
        self._looking.release()
        assert self._go.acquire(timeout=WAIT_S)

    def look(self, times: int = 1) -> None:
        """Let it look, and wait until it is about to look again."""
        for _ in range(times):
            self._go.release()
            assert self._looking.acquire(timeout=WAIT_S)

    def end(self) -> None:
        """Let it look for the last times."""
        self.controller_is_gone = True
        self._go.release(GONE_LOOKS)
        assert self.left.wait(WAIT_S)


def test_a_registrar_leaves_when_its_controller_has_gone() -> None:
    """With no controller and no session it leaves, at the second look; with a controller it waits for sessions."""
    world = World()
    world.look(3 * GONE_LOOKS)
    assert not world.left.is_set()
    world.end()


def test_a_registrar_stays_as_long_as_somebody_has_a_session() -> None:
    """Without a controller the books are still there for whoever has a session, and end after him."""
    world = World()
    session = world.actor.open().session
    world.controller_is_gone = True
    world.look(3 * GONE_LOOKS)
    assert not world.left.is_set()
    world.actor.end(session)
    world.end()


def test_one_look_is_not_enough() -> None:
    """A controller that is back at the next look was not gone."""
    world = World()
    for _ in range(3):
        world.controller_is_gone = True
        world.look(GONE_LOOKS - 1)
        world.controller_is_gone = False
        world.look()
    assert not world.left.is_set()
    world.end()
