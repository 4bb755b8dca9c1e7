"""The registrar as a Ray actor: detached, so nobody's end is its own; it sees for itself when it is no use any more.

Invariants: it ends once TransferQueue's controller has gone for good and nobody has a session, never before; while Ray
cannot say where the controller is, it stays.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from penstock.config import PlaneConfig
from penstock.plane.transfer_queue.library import CONTROLLER, NAMESPACE, imported
from penstock.plane.transfer_queue.registrar import Registrar

__all__ = ["RegistrarActor", "actor_id"]

GONE_LOOKS = 2  # in a row: a client may just be on its way from the controller to here


class RegistrarActor(Registrar):
    """A registrar with a watch.

    Args:
        config: how the plane behaves.
        controller: the id of the actor beside which this one is.
        is_gone: whether that actor has ended.
        leave: ends this one.
        pause: between two looks.
    """

    def __init__(
        self,
        config: PlaneConfig,
        controller: str,
        *,
        is_gone: Callable[[str], bool] | None = None,
        leave: Callable[[], None] | None = None,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        super().__init__(config)
        self._controller = controller
        self._is_gone = is_gone or _is_gone
        self._leave = leave or _leave
        self._pause = pause
        threading.Thread(target=self._watch, name="watch of the controller", daemon=True).start()

    def _watch(self) -> None:
        every_s = min(self.config.heartbeat_s, self.config.dead_after_s / 4)  # seldomer is a standstill to the books
        missed = 0
        while missed < GONE_LOOKS:
            self._pause(every_s)
            missed = missed + 1 if self.is_deserted() and self._is_gone(self._controller) else 0
        self._leave()


def actor_id(actor: Any) -> str:
    """Return what tells an actor from its namesakes."""
    return str(actor._actor_id.hex())  # noqa: SLF001 - it has no other name


def _is_gone(controller: str) -> bool:
    ray = imported("ray")
    try:
        return actor_id(ray.get_actor(CONTROLLER, namespace=NAMESPACE)) != controller
    except ValueError:  # there is none of this name
        return True
    except ray.exceptions.RayError:  # nobody can say just now
        return False


def _leave() -> None:
    ray = imported("ray")
    ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
