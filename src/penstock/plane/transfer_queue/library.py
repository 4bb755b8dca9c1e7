"""What is used of the packages ``transfer_queue`` and ``ray``, and how a running TransferQueue is found.

Invariants: neither package is imported before a TransferQueue is asked for; what is missing is named with the extra
that brings it; finding one ends by its deadline, whatever state it is in.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import os
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from penstock.errors import DataPlaneError, DataPlaneTimeout, DataPlaneUnavailable, MissingExtra
from penstock.retry import Deadline

__all__ = ["BatchMeta", "QueueClient", "TransferQueue", "bounded", "find", "imported", "resolve", "sent", "start"]

CONTROLLER, NAMESPACE = "TransferQueueController", "transfer_queue"  # where the package puts it
START = "start one with transfer_queue.init(), or connect with start=True"

T = TypeVar("T")


class BatchMeta(Protocol):
    """TransferQueue's name for rows of its own: their global indexes, their columns."""

    global_indexes: list[int]

    @property
    def size(self) -> int: ...

    @property
    def field_names(self) -> Sequence[str]: ...

    def select_samples(self, sample_indices: list[int]) -> BatchMeta: ...


class QueueClient(Protocol):
    """The calls of ``transfer_queue.client.AsyncTransferQueueClient`` that are used. None of them has a deadline."""

    storage_manager: Any

    async def async_kv_retrieve_meta(self, keys: list[str], partition_id: str, create: bool = False) -> BatchMeta: ...

    async def async_kv_list(self, partition_id: str | None = None) -> Mapping[str, Mapping[str, Any]]: ...

    async def async_put(self, data: Any, metadata: BatchMeta) -> Any: ...

    async def async_get_data(self, metadata: BatchMeta) -> Any: ...

    async def async_clear_samples(self, metadata: BatchMeta) -> None: ...

    async def async_clear_partition(self, partition_id: str) -> None: ...

    async def async_get_partition_list(self) -> list[str]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class TransferQueue:
    """A running one: its controller's actor, and the configuration under which it was started."""

    controller: Any
    config: Any

    @property
    def name(self) -> str:
        """The controller's own; another life of it has another."""
        return str(self.config.controller.zmq_info.id)

    def open_client(self) -> QueueClient:
        """Return a client of its own, with its storage manager. Shakes hands, for up to 30 s."""
        module = imported("transfer_queue.client")
        number = f"penstock-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        client = module.AsyncTransferQueueClient(number, self.config.controller.zmq_info, zmq_io_threads=1)
        backend = self.config.backend.storage_backend
        try:
            client.initialize_storage_manager(manager_type=backend, config=self.config.backend[backend])
        except BaseException:
            client.close()
            raise
        return client  # type: ignore[no-any-return]


def find(address: str, deadline: Deadline) -> TransferQueue:
    """Return the TransferQueue of the Ray cluster at ``address`` ("" = that of this process, or of this machine).

    Raises:
        MissingExtra: ray or transfer_queue is not installed.
        DataPlaneUnavailable: there is no Ray, or no TransferQueue on it, or its controller is dead.
        DataPlaneTimeout: neither is known by the deadline.
    """
    imported("transfer_queue.client")
    ray = imported("ray")
    _join(ray, address, deadline)
    controller = bounded(lambda: _controller(ray), deadline, f"Ray does not say where {CONTROLLER} is")
    config = resolve(controller.get_config.remote, deadline, "TransferQueue's controller")
    if config is None:
        raise DataPlaneUnavailable("TransferQueue is starting: its controller has no configuration yet")
    return TransferQueue(controller, config)


def start(address: str, settings: Mapping[str, Any], deadline: Deadline) -> TransferQueue:
    """Return the TransferQueue of a cluster; start one, which ends with this process, where none runs.

    ``settings``: as ``transfer_queue.init`` takes them.
    """
    try:
        return find(address, deadline)
    except DataPlaneUnavailable as none:
        if isinstance(none, MissingExtra) or START not in str(none):
            raise
    package, omegaconf = imported("transfer_queue"), imported("omegaconf")

    def init() -> None:
        package.init(omegaconf.OmegaConf.create(dict(settings), flags={"allow_objects": True}))

    bounded(init, deadline, "TransferQueue does not start")
    return find(address, deadline)


def _controller(ray: Any) -> Any:
    try:
        return ray.get_actor(CONTROLLER, namespace=NAMESPACE)
    except ValueError:
        raise DataPlaneUnavailable(f"no TransferQueue runs on this Ray cluster: {START}") from None


def _join(ray: Any, address: str, deadline: Deadline) -> None:
    if ray.is_initialized():
        return

    def connect() -> None:
        try:
            ray.init(address=address or "auto", logging_level="WARNING", log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as refused:
            where = address or "this machine"
            raise DataPlaneUnavailable(f"no Ray cluster answers at {where}: {refused}") from refused

    bounded(connect, deadline, f"Ray at {address or 'this machine'} does not answer")


def resolve(call: Callable[[], Any], deadline: Deadline, who: str, least_s: float = 0.0) -> Any:
    """Make a Ray call and return what it returned, by the deadline, in the tree's own errors.

    Raises:
        DataPlaneUnavailable: the actor is dead, or was not reached.
        DataPlaneTimeout: no answer yet; it may still be carried out.
    """
    ray = imported("ray")
    try:
        return ray.get(sent(call), timeout=max(deadline.remaining(), least_s))
    except ray.exceptions.GetTimeoutError:
        raise DataPlaneTimeout(
            f"{who} has not answered within {deadline.elapsed():.3g} s", attempts=1, elapsed_s=deadline.elapsed()
        ) from None
    except ray.exceptions.RayActorError as dead:
        raise DataPlaneUnavailable(f"{who} is dead or out of reach: {_first_line(dead)}", attempts=1) from dead
    except ray.exceptions.RayError as failed:
        raise DataPlaneUnavailable(f"{who}: Ray failed: {_first_line(failed)}", attempts=1) from failed


def sent(call: Callable[[], T]) -> T:
    """Make a Ray call without waiting for its answer; Ray would start a cluster of its own where it has been left."""
    if not imported("ray").is_initialized():
        raise DataPlaneUnavailable("this process has left its Ray cluster (ray.shutdown)")
    return call()


def bounded(work: Callable[[], T], deadline: Deadline, slow: str, late: Callable[[T], object] | None = None) -> T:
    """Run what knows no deadline in a thread of its own; one that does not come back is left behind.

    Args:
        work: is run.
        deadline: until when its result is waited for.
        slow: says what has not been done by then.
        late: what becomes of a result that comes after that.

    Raises:
        DataPlaneTimeout: ``slow``.
        DataPlaneUnavailable: likewise, of what ``work`` raises that is not of the tree.
    """
    answer: concurrent.futures.Future[T] = concurrent.futures.Future()

    def body() -> None:
        try:
            answer.set_result(work())
        except DataPlaneError as known:
            answer.set_exception(known)
        except BaseException as foreign:  # noqa: BLE001  # top frame of the thread: its caller raises it
            failed = DataPlaneUnavailable(f"{slow}: {type(foreign).__name__}: {_first_line(foreign)}")
            failed.__cause__ = foreign
            answer.set_exception(failed)

    threading.Thread(target=body, name="penstock-transfer-queue-opening", daemon=True).start()
    try:
        return answer.result(deadline.remaining())
    except TimeoutError:
        if answer.done():
            return answer.result()
    if late is not None:
        answer.add_done_callback(lambda done: None if done.exception() else late(done.result()))
    raise DataPlaneTimeout(f"{slow} ({deadline.elapsed():.3g} s)", elapsed_s=deadline.elapsed())


def imported(name: str) -> Any:
    """Return a module of an optional package."""
    try:
        return importlib.import_module(name)
    except ImportError as missing:
        raise MissingExtra(
            f"transferqueue:// needs ray and TransferQueue ({missing}); install them with: "
            "pip install 'penstock[transferqueue]'"
        ) from missing


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
