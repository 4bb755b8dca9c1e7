"""Asking Ray: every call of an actor has a deadline, and what Ray raises is translated here and nowhere else.

Invariants: nobody waits for an actor without a limit (questions to Ray's head, as ``ray.nodes``, have Ray's own: when
the head has gone they may wait longer than their caller meant to); an actor that is being restarted, a node that is not
there and a Ray that does not answer are all ``DataPlaneUnavailable``, and say which; Ray is imported at use.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

from penstock.errors import BadArgument, DataPlaneTimeout, DataPlaneUnavailable, MissingExtra
from penstock.retry import Answer, Deadline, Kind, Policy, Retrier

__all__ = ["connected_ray", "named", "patiently", "ray_module", "reply_of"]

_PATIENT = Policy(
    max_attempts=1_000_000, base_s=0.1, cap_s=0.5, bucket_tokens=0.0, quarantine_s=0.0
)  # what is waited for is one actor of one's own; the deadline ends it

_LEAST_S = 0.2  # a try that has less is not begun

T = TypeVar("T")


def ray_module() -> ModuleType:
    """Return Ray.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import ray
    except ImportError as missing:
        raise MissingExtra(f"this needs Ray ({missing}); install it with: pip install 'penstock[ray]'") from missing
    module: ModuleType = ray
    return module


def connected_ray() -> Any:
    """Return Ray, to which this process is connected.

    Raises:
        MissingExtra: it is not installed.
        BadArgument: ``ray.init`` was not called: it would start a cluster that nobody asked for.
    """
    ray = ray_module()
    if not ray.is_initialized():
        raise BadArgument("this process is not connected to Ray: call ray.init(address=...) first")
    return ray


def named(name: str, namespace: str) -> Any | None:
    """Return the actor of that name; None = there is none, or none any more.

    Raises:
        DataPlaneUnavailable: Ray cannot say.
    """
    ray = connected_ray()
    try:
        return ray.get_actor(name, namespace=namespace)
    except ValueError:
        return None
    except ray.exceptions.RayError as failed:
        raise DataPlaneUnavailable(f"Ray cannot say where {name} is: {failed}") from failed


def reply_of(reference: Any, timeout_s: float) -> Any:
    """Return what a call of an actor came to.

    Raises:
        DataPlaneUnavailable: the actor has died, is being restarted, or did not answer in time.
    """
    ray = connected_ray()
    try:
        return ray.get(reference, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError as late:
        raise DataPlaneUnavailable(f"an actor did not answer within {timeout_s:g} s: is there room for it?") from late
    except ray.exceptions.RayActorError as dead:
        raise DataPlaneUnavailable(f"an actor is away: {_first_line(dead)}") from dead
    except ray.exceptions.RayError as failed:
        raise DataPlaneUnavailable(f"an actor cannot be asked: {_first_line(failed)}") from failed


def patiently(what: str, attempt: Callable[[Deadline], T | None], deadline: Deadline) -> T:
    """Return what ``attempt`` returns once that is not None, asking again until the deadline.

    Raises:
        DataPlaneTimeout: it has passed; says what the last try met.
        DataPlaneError: ``attempt`` raised one that is not ``DataPlaneUnavailable``.
    """
    met, tries = "it is not ready yet", 0

    def once(_keys: object, _endpoint: str, until: Deadline) -> list[Answer[T]]:
        nonlocal met, tries
        if until.remaining() < _LEAST_S and tries:
            return [Answer(Kind.RETRYABLE, code="late")]  # what it could only meet is the end of the time
        tries += 1
        try:
            found = attempt(until)
        except MissingExtra:
            raise
        except DataPlaneUnavailable as away:
            met = str(away)
            found = None
        return [Answer(Kind.RETRYABLE, code="away") if found is None else Answer(Kind.OK, found)]

    result = Retrier(_PATIENT).run(what, [what], once, deadline=deadline).settled[what]
    if result.value is None:
        raise DataPlaneTimeout(f"{what}: not within {deadline.timeout_s:g} s: {met}", missing=[what])
    return result.value


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
