"""The actors: a keeper each, of the plane's process and of each node's agent. Made remote by ``ray``, at use.

An actor that Ray starts again begins as it began the first time: what it must know lies in its directory, with its
neighbours, or with the plane's actor. Invariants: a method answers at once, whatever the process is doing; the token
reaches a node by an actor's reply and lies there in a file of mode 0600; an agent whose plane has no actor any more,
for good, ends in order, and its actor with it.
"""

from __future__ import annotations

import os
import random
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from penstock.errors import DataPlaneUnavailable
from penstock.launch.asking import named, reply_of
from penstock.launch.keeper import Keeper, Standing
from penstock.launch.orders import Access, PlaneOrders, actor_name, free_port
from penstock.wire.auth import read_token

__all__ = ["HostActor", "Introduction", "PlaneActor"]

_LOOK_S = 5.0  # between two looks at whether the plane has an actor
_GONE_LOOKS = 6  # so many in a row without one: it is gone for good, not between two lives
_ASK_S = 5.0


class Introduction(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent must know of its plane. ``token`` is a secret; it is not shown."""

    url: str
    token: bytes

    def __repr__(self) -> str:
        return f"Introduction({self.url}, token not shown)"


class PlaneActor:
    """The plane of ``orders``.

    Args:
        maker: who made it: of several that start a plane of one name at once, one.
    """

    def __init__(self, orders: PlaneOrders, maker: str) -> None:
        self._orders, self._maker = orders, maker
        self._keeper = Keeper(orders.plane_dir, self._command, self._served, linger_s=orders.linger_s)
        self._keeper.begin()

    def orders(self) -> PlaneOrders:
        return self._orders

    def maker(self) -> str:
        return self._maker

    def standing(self) -> Standing:
        return self._keeper.standing()

    def introduction(self) -> Introduction | None:
        """Return what an agent must know; None = it is not known yet."""
        url = _read(self._orders.plane_dir / "url")
        token_file = self._orders.plane_dir / "token"
        if url is None or not token_file.exists():
            return None
        return Introduction(url=url, token=read_token(token_file))

    def end(self) -> None:
        self._keeper.end()

    def _command(self) -> list[str]:
        """The port, once chosen, is kept: clients and agents know it by the URL."""
        orders, url = self._orders, _read(self._orders.plane_dir / "url")
        kept = 0 if url is None else int(url.rpartition(":")[2])
        port = orders.port or kept or free_port(orders.node, random.Random())
        return orders.serve(port)

    def _served(self, said: dict[str, Any]) -> None:
        _write(self._orders.plane_dir / "url", said["url"].encode())


class HostActor:
    """The agent of the host at ``node`` of the plane of ``orders``.

    Args:
        leave: ends this actor for good.
    """

    def __init__(self, orders: PlaneOrders, node: str, leave: Callable[[], None] | None = None) -> None:
        self._orders, self._node = orders, node
        self._leave = leave or _leave_ray
        self._folder = orders.host_dir(node)
        self._keeper = Keeper(self._folder, self._command, linger_s=orders.linger_s)
        self._keeper.begin()
        threading.Thread(target=self._watch, name="watch of the plane", daemon=True).start()

    def standing(self) -> Standing:
        return self._keeper.standing()

    def access(self) -> Access | None:
        """Return how clients on this node reach the plane; None = the agent does not serve yet."""
        url = _read(self._folder / "url")
        if url is None or self._keeper.standing().state != "ready":
            return None
        token_file, host_dir = str(self._folder / "token"), str(self._folder)
        return Access(url=url, token_file=token_file, host_dir=host_dir, tls_ca=self._orders.hosts.tls_ca)

    def end(self) -> None:
        self._keeper.end()

    def _command(self) -> list[str]:
        url = self._introduced()
        return self._orders.host(self._node, url, self._folder / "token")

    def _introduced(self) -> str:
        """Return the plane's URL, its token being in its file: as its actor says, or, while that is away, as before.

        Raises:
            DataPlaneUnavailable: it is away and was never known here.
        """
        try:
            known: Introduction | None = reply_of(_plane_of(self._orders).introduction.remote(), _ASK_S)
        except DataPlaneUnavailable:
            known = None
        if known is not None:
            _write(self._folder / "token", known.token + b"\n")
            _write(self._folder / "url", known.url.encode())
        url = _read(self._folder / "url")
        if url is None:
            raise DataPlaneUnavailable(f"the plane {self._orders.name!r} has not said its URL yet")
        return url

    def _watch(self) -> None:
        missed = 0
        while missed < _GONE_LOOKS:
            self._keeper.over.wait(_LOOK_S)
            if self._keeper.over.is_set():
                return
            missed = missed + 1 if _is_gone(self._orders) else 0
        self._keeper.close()
        self._leave()


def _plane_of(orders: PlaneOrders) -> Any:
    return named(actor_name(orders.name), orders.namespace)


def _is_gone(orders: PlaneOrders) -> bool:
    try:
        return _plane_of(orders) is None
    except DataPlaneUnavailable:  # nobody can say just now
        return False


def _leave_ray() -> None:
    import ray

    ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _write(path: Path, content: bytes) -> None:
    """Replace the file whole, mode 0600 from its first moment."""
    fresh = path.with_suffix(f".{secrets.token_hex(4)}")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
    fresh.replace(path)
