"""What the managers ask TransferQueue's controller, under a deadline.

Invariants: an answer that does not come is a ``DataPlaneTimeout``, one that says no is an ``Answer`` without a body; a
socket on which no answer came is not used again, because replies are told apart by their order alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import zmq
from transfer_queue.utils.zmq_utils import ZMQMessage, ZMQRequestType, ZMQServerInfo, ZMQSocketPool

from penstock.errors import DataPlaneError, DataPlaneTimeout

__all__ = ["Answer", "exchange", "places_of_partition", "produced"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the controller said: a body, or why it refused."""

    body: Mapping[str, Any] | None
    refusal: str = ""

    def require(self) -> Mapping[str, Any]:
        """Return the body, or raise ``DataPlaneError`` with the refusal."""
        if self.body is None:
            raise DataPlaneError(f"TransferQueue's controller refused: {self.refusal}")
        return self.body


async def exchange(
    pool: ZMQSocketPool, controller: ZMQServerInfo, frames: list[Any], expected: ZMQRequestType, timeout_s: float
) -> Answer:
    """Send one request on a socket of ``pool`` and return its answer. Runs on the pool's own loop.

    Raises:
        DataPlaneTimeout: no answer in time, or none that can be read; whether what was asked was done is unknown.
    """
    try:
        async with asyncio.timeout(timeout_s), pool.alease(controller) as socket:  # an error closes the socket
            await socket.send_multipart(frames)
            told = ZMQMessage.deserialize(await socket.recv_multipart(copy=False))
    except TimeoutError as late:
        raise DataPlaneTimeout(
            f"TransferQueue's controller at {controller.ip} gave no {expected.value} within {timeout_s:g} s",
            missing=["TransferQueue's controller"],
            elapsed_s=timeout_s,
        ) from late
    except (zmq.ZMQError, ValueError) as broken:
        raise DataPlaneTimeout(f"no answer from TransferQueue's controller at {controller.ip}: {broken}") from broken
    if told.request_type == expected:
        return Answer(told.body)
    return Answer(None, str(told.body.get("message", told.request_type)))


def produced(sender: str, partition: str, fields: Sequence[str]) -> list[Any]:
    """Return the request for which rows of ``partition`` have ``fields``."""
    body = {"partition_id": partition, "data_fields": list(fields)}
    return _frames(ZMQRequestType.GET_PRODUCTION, sender, body)


def places_of_partition(sender: str, partition: str) -> list[Any]:
    """Return the request for all metadata of ``partition``, the places of all values among it."""
    return _frames(ZMQRequestType.GET_PARTITION_META, sender, {"partition_id": partition})


def _frames(kind: ZMQRequestType, sender: str, body: dict[str, Any]) -> list[Any]:
    return list(ZMQMessage.create(request_type=kind, sender_id=sender, body=body).serialize())
