"""What a conformance case works with: fresh clients and partitions, and checks that say what they expected.

Invariants: a world closes every client it made; partition names are never repeated; a failed check is an
``AssertionError`` that tells what was got and what the contract wants.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeAlias
from unittest import SkipTest

import torch
from tensordict import TensorDict

from penstock.errors import DataPlaneError
from penstock.plane.contract import DataPlaneClient
from penstock.records import KVBatchMeta

Measure: TypeAlias = Callable[[DataPlaneClient], int]

SOON_S = 20.0  # what "at once" may take on a loaded machine
_MOMENT_S = 0.15
TASKS = ("prep", "train")  # "train" is the final task
_numbers = itertools.count(1)


class Caught:
    """The error a ``raises`` block ended with."""

    error: DataPlaneError


@contextmanager
def raises(*kinds: type[BaseException], naming: Sequence[str] = ()) -> Iterator[Caught]:
    """Expect an error of the tree that is an instance of all ``kinds`` and whose message has each of ``naming``."""
    caught = Caught()
    wanted = " and ".join(kind.__name__ for kind in kinds)
    try:
        yield caught
    except DataPlaneError as error:
        caught.error = error
        wrong = [kind.__name__ for kind in kinds if not isinstance(error, kind)]
        if wrong:
            raise AssertionError(f"wanted {wanted}; got {type(error).__name__}, no {wrong}: {error}") from error
        absent = [text for text in naming if text not in str(error)]
        if absent:
            raise AssertionError(f"the message of {type(error).__name__} should name {absent}: {error}") from error
        return
    except AssertionError:
        raise
    except Exception as raw:  # top frame: a raw exception that left a client is the finding
        raise AssertionError(f"wanted {wanted}; a raw {type(raw).__name__} left the client: {raw}") from raw
    raise AssertionError(f"wanted {wanted}; the call returned")


def same(got: object, want: object, what: str) -> None:
    """Require ``got == want``."""
    if got != want:
        raise AssertionError(f"{what}: got {got!r}, want {want!r}")


def true(condition: object, what: str) -> None:
    """Require ``condition``."""
    if not condition:
        raise AssertionError(what)


def same_tensor(got: Any, want: torch.Tensor, what: str = "column") -> None:
    """Require the same dtype, shape and bits; nested tensors are compared row by row."""
    true(isinstance(got, torch.Tensor), f"{what}: got a {type(got).__name__}, want a tensor")
    same(got.is_nested, want.is_nested, f"{what}: nested")
    same(got.dtype, want.dtype, f"{what}: dtype")
    rows = zip(got.unbind(), want.unbind(), strict=True) if want.is_nested else [(got, want)]
    for mine, theirs in rows:
        same(tuple(mine.shape), tuple(theirs.shape), f"{what}: shape")
        true(_bits(mine) == _bits(theirs), f"{what}: got {mine!r}, want {theirs!r}")


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def names(prefix: str, n: int) -> list[str]:
    return [f"{prefix}{i}" for i in range(n)]


def together(*bodies: Callable[[], object]) -> None:
    """Run the bodies in threads at the same time; the first error is raised here."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(bodies))

    def guarded(body: Callable[[], object]) -> None:
        try:
            start.wait(SOON_S)
            body()
        except BaseException as error:  # noqa: BLE001  # top frame of this thread: raised again below
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(body,), daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S * 2)
        true(not thread.is_alive(), "a thread did not end")
    if errors:
        raise errors[0]


def later(body: Callable[[], object]) -> Callable[[], object]:
    """Return ``body``, done after a moment: by then a claim that was started beside it waits."""

    def wait_first() -> None:
        time.sleep(_MOMENT_S)
        body()

    return wait_first


class Flow:
    """One partition as one client sees it."""

    def __init__(self, client: DataPlaneClient, name: str) -> None:
        self.client = client
        self.name = name

    def seen_by(self, client: DataPlaneClient) -> Flow:
        return Flow(client, self.name)

    def put(self, keys: Sequence[str], tags: Sequence[dict[str, Any]] | None = None, **columns: Any) -> KVBatchMeta:
        fields = TensorDict(columns, batch_size=[len(keys)]) if columns else None
        return self.client.put_samples(keys, self.name, fields, tags)

    def put_rows(self, n: int, prefix: str = "k", **tag: Any) -> list[str]:
        """Put ``n`` rows with field ``x`` = 0, 1, ... and the same tags."""
        keys = names(prefix, n)
        self.put(keys, [dict(tag) for _ in keys] if tag else None, x=torch.arange(n))
        return keys

    def put_group(
        self, group: str, n: int, expected: int | None = None, *, committed: bool = True, **tag: Any
    ) -> list[str]:
        keys = names(f"{group}_g", n)
        declared = {} if expected is None else {"expected_num_keys": expected}
        self.put(
            keys, [{"group_id": group, "committed": committed, **declared, **tag} for _ in keys], x=torch.arange(n)
        )
        return keys

    def get(self, keys: Sequence[str], *fields: str) -> TensorDict:
        return self.client.get_samples(keys, self.name, fields or ("x",))

    def x(self, keys: Sequence[str]) -> list[int]:
        """Field ``x`` of the rows, as Python numbers."""
        return self.get(keys)["x"].tolist()  # type: ignore[no-any-return]

    def claim(self, task: str = "train", batch: int = 64, **options: Any) -> KVBatchMeta:
        """Claim what is ready now, unless ``options`` say otherwise."""
        options = {"blocking": False, **options}
        return self.client.claim_meta(self.name, task, options.pop("required", ["x"]), batch, **options)

    def take(self, task: str = "train", batch: int = 64, **options: Any) -> KVBatchMeta:
        """Claim, waiting for rows."""
        return self.claim(task, batch, **{"blocking": True, "timeout_s": SOON_S, **options})

    def keys(self) -> list[str]:
        """The keys of all rows that are there."""
        return sorted(key for group in self.client.list_metadata(self.name) for key in group.keys)

    def tags(self, key: str) -> dict[str, Any]:
        """The tags of a row that is a group of one, or the first of its group."""
        return next(dict(group.tags) for group in self.client.list_metadata(self.name) if key in group.keys)


class World:
    """The plane under test, as one case meets it."""

    def __init__(
        self,
        make_client: Callable[[], DataPlaneClient],
        *,
        shares_plane: bool | None = None,
        measure_bytes: Measure | None = None,
    ) -> None:
        self._make = make_client
        self._shares = shares_plane
        self._measure = measure_bytes
        self._clients: list[DataPlaneClient] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in reversed(self._clients):
            client.close()

    @property
    def client(self) -> DataPlaneClient:
        """The first client."""
        return self._clients[0] if self._clients else self._new()

    def other(self) -> DataPlaneClient:
        """Return one more client of the same plane; skips the case where the adapter has no such thing."""
        first = self.client
        if self._shares is False:
            raise SkipTest("two clients of this adapter do not share a plane")
        second = self._new()
        if self._shares is None:
            self._shares = self._meet(first, second)
            return self.other() if not self._shares else second
        return second

    def _new(self) -> DataPlaneClient:
        client = self._make()
        self._clients.append(client)
        return client

    def _meet(self, first: DataPlaneClient, second: DataPlaneClient) -> bool:
        name = self.new_name()
        first.register_partition(name, [], 1, ["meet"])
        first.put_samples(["here"], name, {"x": ints(1)})
        return bool(second.list_metadata(name))

    def new_name(self) -> str:
        return f"conformance-{os.getpid()}-{next(_numbers)}"

    def flow(self, **options: Any) -> Flow:
        """Register a new partition with fields x, y and tasks prep, train."""
        name = self.new_name()
        options = {"fields": ["x", "y"], "num_samples": 8, "consumer_tasks": list(TASKS), **options}
        self.client.register_partition(name, **options)
        return Flow(self.client, name)

    def needs(self, *capabilities: str) -> None:
        """Skip the case unless the adapter claims these capabilities."""
        has = self.client.get_capabilities()
        lacking = [name for name in capabilities if not getattr(has, name)]
        if lacking:
            raise SkipTest(f"the adapter does not claim {', '.join(lacking)}")

    def measured_bytes(self) -> int:
        if self._measure is None:
            raise SkipTest("measure_bytes was not given")
        return self._measure(self.client)
