"""This process's session: the configuration it came from, the client, and the lanes in which awaited calls run.

Invariants: one session a process, opened and closed under one lock; a forked child opens its own, on the same plane;
what is not ours in a configuration is passed over by name, once, and what nobody knows is refused.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penstock.compat.transfer_queue.key_values import KeyValues
from penstock.compat.transfer_queue.places import Opened, join, open_plane
from penstock.errors import BadArgument, DataPlaneTimeout
from penstock.plane.crossing import MAX_CALLS, MAX_CLAIMS, MAX_PUTS, Crossing
from penstock.retry import Deadline

__all__ = ["Session", "close", "current", "here", "open_session"]

OURS = "penstock"
THEIRS = frozenset({"backend", "controller", "metrics"})  # sections that TransferQueue knows

log = logging.getLogger(__name__)


class Session:
    """What a process has open."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.calls = KeyValues(opened.client)
        self.crossing = Crossing(MAX_CLAIMS, MAX_PUTS, MAX_CALLS)
        self.pid = os.getpid()

    def close(self) -> None:
        """End the awaited calls, then the rest. It needs a loop, and the caller may be on one: so, in a thread."""
        with concurrent.futures.ThreadPoolExecutor(1, "penstock-tq-close") as thread:
            thread.submit(asyncio.run, self.crossing.close(self.opened.end, None)).result()


_lock = threading.RLock()
_session: Session | None = None


def open_session(conf: Mapping[str, Any] | None) -> dict[str, Any]:
    """Open the process's session, if it has none; return ``conf`` with the section that leads to its plane."""
    global _session  # noqa: PLW0603 - the interface is one of module functions
    given, ours = _sections(conf)
    with _lock:
        if here() is None:
            before = _session.opened.section if _session is not None else None  # a fork's parent's
            _session = Session(open_plane(ours or before))
        session = _session
        assert session is not None
    if ours is not None and _differ(ours, session.opened.section):
        raise BadArgument(f"init: this process uses the plane {session.opened.section}; close() first, to use {ours}")
    return {**given, OURS: dict(session.opened.section)}


def here() -> Session | None:
    """Return the process's session, if it has one."""
    session = _session
    return session if session is not None and session.pid == os.getpid() else None


def current(deadline: Deadline) -> Session:
    """Return the process's session; one that has none opens it on its parent's plane, or on the Ray cluster's.

    Raises:
        DataPlaneUnavailable: there is no such plane.
        DataPlaneTimeout: it does not serve in time, or another thread is still opening the session.
    """
    global _session  # noqa: PLW0603
    session = here()
    if session is not None:
        return session
    lock = _lock
    if not lock.acquire(timeout=deadline.remaining()):
        raise DataPlaneTimeout("another thread is still opening this process's session", elapsed_s=deadline.elapsed())
    try:
        session = here()
        if session is None:
            opened = join(deadline.remaining()) if _session is None else open_plane(_session.opened.section)
            session = _session = Session(opened)
        return session
    finally:
        lock.release()


def close() -> None:
    """Close the process's session. Idempotent."""
    global _session
    with _lock:
        session, _session = here(), None
    if session is not None:
        session.close()


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - a lock that another process's thread holds cannot be freed
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)


def _sections(conf: object) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return a configuration as plain dicts, and our section of it."""
    plain = _plain(conf)
    unknown = sorted(set(plain) - THEIRS - {OURS})
    if unknown:
        raise BadArgument(f"init: unknown sections {unknown}; known are {sorted({OURS, *THEIRS})}")
    passed_over = sorted(set(plain) & THEIRS)
    if passed_over:
        log.warning("init: %s: TransferQueue's own, without meaning here; see %r", ", ".join(passed_over), OURS)
    ours = plain.get(OURS)
    if ours is not None and not isinstance(ours, Mapping):
        raise BadArgument(f"init: the section {OURS!r} must be a mapping, got {type(ours).__name__}")
    return plain, None if ours is None else dict(ours)


def _plain(conf: object) -> dict[str, Any]:
    if conf is None:
        return {}
    omegaconf = sys.modules.get("omegaconf")  # a DictConfig can only come from a process that has imported it
    if omegaconf is not None and omegaconf.OmegaConf.is_config(conf):
        conf = omegaconf.OmegaConf.to_container(conf, resolve=True)
    if not isinstance(conf, Mapping):
        raise BadArgument(f"init takes a mapping, got {type(conf).__name__}")
    return dict(conf)


def _differ(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    named = [name for name in ("plane", "name") if name in wanted and wanted[name] != found.get(name)]
    return bool(named) or ("data_dir" in wanted and _folder(wanted["data_dir"]) != _folder(found.get("data_dir")))


def _folder(data_dir: object) -> Path | None:
    return None if data_dir is None else Path(str(data_dir)).resolve()
