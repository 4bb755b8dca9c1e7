"""The storage clients: what TransferQueue's key-value manager calls to put, get and clear values.

Invariants: a put writes new names and returns where it wrote (``Place``); TransferQueue's controller keeps that beside
its own metadata, so that the switch from an old value to a new one is the controller's, and a name never means two
values; a get returns one value per key or raises a ``BatchError`` that names the keys, never ``None`` for a failure;
a clear that returns has removed everything.
"""

from __future__ import annotations

import contextlib
import itertools
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from transfer_queue.storage.clients.base import StorageKVClient

from penstock.compat.transfer_queue_storage.blocks import Blocks, PlaneBlocks, StoreBlocks
from penstock.compat.transfer_queue_storage.frames import decode, encode, length
from penstock.compat.transfer_queue_storage.options import MooncakeOptions, PlaneOptions, options_from
from penstock.config import ClientConfig, config_from
from penstock.errors import BadArgument, BatchError, UnknownName
from penstock.plane.contract import DataPlaneClient
from penstock.retry import Deadline

__all__ = ["PenstockMooncakeClient", "PenstockPlaneClient", "Place", "ValueClient"]

Place: TypeAlias = Mapping[str, Any]
"""Where a value lies: ``version``, which with its key makes its name, and ``nbytes``. Kept by the controller."""

Opener: TypeAlias = Callable[[], Blocks]


class ValueClient(StorageKVClient):  # type: ignore[misc]  # the package ships no types
    """What both clients are: keys and values of TransferQueue on one side, names and bytes on the other."""

    def __init__(self, config: Mapping[str, Any], blocks: Blocks, namespace: str, timeout_s: float) -> None:
        super().__init__(config)
        self._blocks = blocks
        self._namespace = namespace
        self._timeout_s = timeout_s
        self._life = uuid.uuid4().hex[:12]
        self._puts = itertools.count()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._namespace!r} on {self._blocks!r}>"

    def put(self, keys: list[str], values: list[Any]) -> list[Place]:
        """Store ``values`` under new names, all or none.

        Returns:
            One ``Place`` per key, for ``get`` and ``clear``.

        Raises:
            RefusedType: (also ``TypeError``) a value of a type that is not carried; nothing was stored.
            BatchError: names the keys that failed, and why; nothing is visible.
        """
        _check_aligned(keys, values=values)
        deadline = self._deadline()
        pieces = [encode(key, value) for key, value in zip(keys, values, strict=True)]
        version = f"{self._life}-{next(self._puts):x}"
        names = [self._name(key, version) for key in keys]
        with self._named(keys, names):
            self._blocks.put(names, pieces, deadline)
        return [{"version": version, "nbytes": length(value)} for value in pieces]

    def get(  # noqa: D417  # the two that are not needed
        self,
        keys: list[str],
        shapes: Sequence[Any] | None = None,  # noqa: ARG002
        dtypes: Sequence[Any] | None = None,  # noqa: ARG002
        custom_backend_meta: Sequence[Place | None] | None = None,
    ) -> list[Any]:
        """Read values, in the order of ``keys``. A value says itself what shape and dtype it has.

        Args:
            keys: as they were put.
            custom_backend_meta: the places, as ``put`` returned them.

        Raises:
            BatchError: names the keys that have no value, cannot be read or came damaged, and why.
        """
        places = self._places(keys, custom_backend_meta)
        names = [self._name(key, place["version"]) for key, place in zip(keys, places, strict=True)]
        with self._named(keys, names):
            views = self._blocks.get(names, [place["nbytes"] for place in places], self._deadline())
        return [decode(key, view) for key, view in zip(keys, views, strict=True)]

    def clear(self, keys: list[str], custom_backend_meta: Sequence[Place | None] | None = None) -> None:
        """Remove values; those that are gone, and keys that have no place, are no error.

        Raises:
            BatchError: names the keys that are still there.
        """
        given = custom_backend_meta or [None] * len(keys)
        pairs = [(key, place) for key, place in zip(keys, given, strict=True) if place and _is_place(place)]
        names = [self._name(key, place["version"]) for key, place in pairs]
        if names:
            with self._named([key for key, _ in pairs], names):
                self._blocks.remove(names, self._deadline())

    def close(self) -> None:
        """End, idempotently."""
        self._blocks.close()

    def _name(self, key: str, version: str) -> str:
        return f"{self._namespace}/{key}@{version}"

    def _deadline(self) -> Deadline:
        return Deadline(self._timeout_s)

    def _places(self, keys: Sequence[str], places: Sequence[Place | None] | None) -> list[Place]:
        """Return a place for every key, or raise for those that nobody has put."""
        given = [None] * len(keys) if places is None else list(places)
        _check_aligned(keys, custom_backend_meta=given)
        unknown = [key for key, place in zip(keys, given, strict=True) if not _is_place(place)]
        if unknown:
            raise _missing("get", unknown, "has not been put by this backend")
        return [place for place in given if place]

    @contextlib.contextmanager
    def _named(self, keys: Sequence[str], names: Sequence[str]) -> Any:
        """Tell failures by the caller's keys; the names are ours."""
        try:
            yield
        except BatchError as failed:
            key_of = dict(zip(names, keys, strict=True))
            failures = {key_of.get(name, name): error for name, error in failed.failures.items()}
            raise BatchError(failed.message.replace(f"{self._namespace}/", ""), failures=failures) from failed


def _check_aligned(keys: object, **others: object) -> None:
    if not isinstance(keys, list):
        raise BadArgument(f"keys must be a list, got {type(keys).__name__}")
    for name, other in others.items():
        if not isinstance(other, list) or len(other) != len(keys):
            raise BadArgument(f"{name} must be a list of {len(keys)}, one per key")


def _is_place(place: object) -> bool:
    """Whether one of our puts returned it; rows may have been put by another backend before a change of it."""
    match place:
        case {"version": str(), "nbytes": int()}:
            return True
    return False


def _missing(what: str, keys: Sequence[str], why: str) -> BatchError:
    failures = {key: UnknownName(f"{what}: {key!r} {why}", keys=[key]) for key in keys}
    return BatchError(f"{what}: {len(keys)} keys failed: {keys[0]!r} {why}", failures=failures)


class PenstockMooncakeClient(ValueClient):
    """On ``MooncakeStore``: retried per key, verified, replicated, within a deadline. Options: ``MooncakeOptions``.

    Raises:
        BadArgument: an unknown or impossible option.
        MissingExtra: (also ``ImportError``) Mooncake or a library that it needs is not installed.
        DataPlaneUnavailable: no master answers.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        options = options_from(MooncakeOptions, config)
        from penstock.payload.stores.mooncake.store import MooncakeStore

        blocks = StoreBlocks(MooncakeStore(options.store()))
        super().__init__(config, blocks, _namespace(options.namespace), options.timeout_s)


class PenstockPlaneClient(ValueClient):
    """On a Penstock plane: shared memory on this machine, or that of several. Options: ``PlaneOptions``.

    Raises:
        BadArgument: an unknown or impossible option.
        DataPlaneUnavailable: no plane answers.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        options = options_from(PlaneOptions, config)
        namespace = _namespace(options.namespace)
        blocks = PlaneBlocks(_connected(options), namespace, options.timeout_s)
        super().__init__(config, blocks, namespace, options.timeout_s)


def _connected(options: PlaneOptions) -> DataPlaneClient:
    from penstock.plane.connect import connect
    from penstock.plane.local import LocalDataPlaneClient

    common = {"integrity": options.integrity, "timeout_s": options.timeout_s, "role": "transfer_queue"}
    if options.url:
        reach = {"token_file": options.token_file, "host_dir": options.host_dir, "tls_ca": options.tls_ca}
        return connect(options.url, **common, **reach)
    if options.join:
        return LocalDataPlaneClient(options.data_dir, config=config_from(ClientConfig, common), start=False)
    return connect("local", data_dir=options.data_dir or None, **common, **options.plane)


def _namespace(given: str) -> str:
    """Return the namespace of the configuration; a client without one works alone."""
    return given or f"tq-{uuid.uuid4().hex[:12]}"
