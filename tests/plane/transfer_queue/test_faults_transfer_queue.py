"""What used to hang for minutes: registrar, storage unit and controller are killed under clients, one after the other.

The tests stand in order: each leaves less of the TransferQueue.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import pytest
import torch

from penstock import connect
from penstock.errors import DataPlaneClearError, DataPlaneError, DataPlaneTimeout, DataPlaneUnavailable
from penstock.plane.contract import DataPlaneClient
from penstock.plane.transfer_queue.desk import NAME
from penstock.retry import Deadline
from tests.leaks import wait_for
from tests.plane.transfer_queue.queues import Queue, stored_bytes

TIMEOUT_S = 2.0
SLACK_S = 3.0  # a loaded machine; what is tested used to take 610 s


def filled(client: DataPlaneClient, partition: str, rows: int = 8) -> list[str]:
    """A partition with rows of a block each."""
    client.register_partition(partition, ["x"], rows, ["train"])
    keys = [f"k{i}" for i in range(rows)]
    for key in keys:
        client.put_samples([key], partition, {"x": torch.full((1, 1000), float(key[1:]))})
    return keys


def ended(call: Callable[[], object]) -> DataPlaneError:
    """Return the error a call ends with, in time."""
    began = time.monotonic()
    with pytest.raises(DataPlaneError) as caught:
        call()
    took = time.monotonic() - began
    assert took < TIMEOUT_S + SLACK_S, f"{took:.2f} s: {caught.value}"
    return caught.value


def test_connect_joins_the_running_one(queue: Queue) -> None:
    """Clients of connect() are on the plane of the TransferQueue that runs, also with start=True."""
    with connect("transferqueue://") as one, connect("transferqueue://", start=True) as other:
        keys = filled(one, "joined", 2)
        assert other.get_samples(keys, "joined", ["x"])["x"][:, 0].tolist() == [0.0, 1.0]
        assert one.get_capabilities() == other.get_capabilities()


def test_a_killed_registrar_ends_every_call_at_once(queue: Queue) -> None:
    """Without the books every call is DataPlaneUnavailable; a new client begins a new plane."""
    import ray

    with queue.client() as client:
        keys = filled(client, "p", 2)
        ray.kill(client._desk._actor)
        for call in (
            lambda: client.get_samples(keys, "p", ["x"], timeout_s=TIMEOUT_S),
            lambda: client.put_samples(["new"], "p", {"x": torch.zeros(1, 1000)}, timeout_s=TIMEOUT_S),
            lambda: client.claim_meta("p", "train", ["x"], 1, timeout_s=TIMEOUT_S),
            lambda: client.list_metadata("p", timeout_s=TIMEOUT_S),
            lambda: client.ping(timeout_s=TIMEOUT_S),
        ):
            assert isinstance(ended(call), DataPlaneUnavailable)
        with queue.client() as after:
            assert after.list_metadata("p") == []
            mine = f"penstock-{after.get_capabilities().incarnation:x}"
            left = [name for name in after._blocks.partitions(Deadline(10.0)) if name.startswith("penstock-")]
            assert [name for name in left if name != mine] == []


def test_strangers_at_its_ports_disturb_nobody(queue: Queue) -> None:
    """Messages that nobody can decode, to controller and units: clients go on."""
    with queue.client() as client:
        keys = filled(client, "strangers", 2)
        for host, port in queue.ports():
            for frames in ([b"\xff" * 64], [b""], [b"\x93\x01\x02\x03", b"\x00" * 8]):
                say(host, port, frames)
        data, _ = client.get_samples(keys, "strangers", ["x"], on_failed="drop", timeout_s=10.0)
        assert data["x"][:, 0].tolist() == [0.0, 1.0]
        client.ping(timeout_s=10.0)


def test_who_asks_for_what_nobody_serves_gets_nobody_elses_reply(queue: Queue) -> None:
    """A request of a type that is not served is refused, each by its own reply; clients in between get theirs."""
    from transfer_queue.utils.zmq_utils import ZMQMessage, ZMQRequestType

    odd = ZMQMessage.create(ZMQRequestType.METRICS_RESPONSE, "stranger", {})
    with queue.client() as client:
        keys = filled(client, "odd", 2)
        for host, port in queue.ports():
            for _ in range(2):
                data, _ = client.get_samples(keys, "odd", ["x"], on_failed="drop", timeout_s=10.0)
                assert data["x"][:, 0].tolist() == [0.0, 1.0]
                told = ZMQMessage.deserialize(say(host, port, odd.serialize(), answer_ms=10_000))
                assert told.request_type in (ZMQRequestType.REQUEST_ERROR, ZMQRequestType.PUT_GET_OPERATION_ERROR)
                assert told.receiver_id in ("stranger", None)


def say(host: str, port: int, frames: Sequence[bytes], answer_ms: int = 200) -> list[bytes]:
    """Send a message as any ZMQ client can; return the answer, if there is one in time."""
    import zmq

    context = zmq.Context()
    try:
        with context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.IDENTITY, b"TQ_STORAGE_stranger" + os.urandom(8))  # others, the units do not hear
            socket.connect(f"tcp://{host}:{port}")
            socket.send_multipart(frames)
            return socket.recv_multipart() if socket.poll(answer_ms) else []
    finally:
        context.destroy(linger=500)


def test_a_clear_that_the_storage_did_not_carry_out_is_not_a_success(queue: Queue) -> None:
    """With a unit that does not answer a clear is a DataPlaneClearError in time; the next one frees what it left."""
    with queue.client() as client:
        before = stored_bytes(client)
        keys = filled(client, "clear")
        with queue.stopped_unit():
            error = ended(lambda: client.clear_samples(keys, "clear", timeout_s=TIMEOUT_S))
            assert isinstance(error, DataPlaneClearError)
            assert client.list_metadata("clear") == []
        client.clear_samples(keys, "clear", timeout_s=30.0)
        assert stored_bytes(client) == before


def test_a_killed_storage_unit_costs_its_own_rows(queue: Queue) -> None:
    """Reads of its rows end in time and name rows and unit; the others are served, and cleared with what is gone."""
    with queue.client() as client:
        keys = filled(client, "unit")
        queue.kill_unit()
        error = ended(lambda: client.get_samples(keys, "unit", ["x"], timeout_s=TIMEOUT_S))
        assert error.keys
        assert set(error.keys) < set(keys)
        assert "storage unit" in str(error)
        data, kept = client.get_samples(keys, "unit", ["x"], on_failed="drop", timeout_s=4 * TIMEOUT_S)
        assert kept.sample_ids == [key for key in keys if key not in error.keys]
        assert data["x"][:, 0].tolist() == [float(key[1:]) for key in kept.sample_ids]
        assert "storage unit" in str(ended(lambda: client.ping(timeout_s=TIMEOUT_S)))
        client.clear_samples(keys, "unit", timeout_s=30.0)
        assert client.list_metadata("unit") == []


def test_a_killed_controller_ends_every_call_in_time(queue: Queue) -> None:
    """Puts and pings end typed in time and name the controller; the books answer, and end with their last client."""
    with queue.client() as client:
        client.register_partition("c", ["x"], 2, ["train"])
        queue.kill_controller()
        for call in (
            lambda: client.put_samples(["new"], "c", {"x": torch.zeros(1, 1000)}, timeout_s=TIMEOUT_S),
            lambda: client.ping(timeout_s=TIMEOUT_S),
        ):
            error = ended(call)
            assert isinstance(error, (DataPlaneTimeout, DataPlaneUnavailable)), error
            assert "controller" in str(error)
        assert client.list_metadata("c") == []
        assert registrars()
    wait_for(lambda: not registrars())
    with pytest.raises(DataPlaneUnavailable, match=r"no TransferQueue runs.*transfer_queue\.init\(\)"):
        connect("transferqueue://", timeout_s=10.0)


def registrars() -> list[str]:
    """The registrars that are there, by name."""
    import ray

    actors = ray.util.list_named_actors(all_namespaces=True)
    return [actor["name"] for actor in actors if actor["name"].startswith(NAME)]
