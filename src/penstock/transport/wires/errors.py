"""The one place where what an operating system or a library raises becomes a ``TransportError``.

Invariant: errors are told apart by their type and number, never by the name of a class or the words of a message.
"""

from __future__ import annotations

import errno
import ssl

from penstock.errors import TransportError
from penstock.retry import Deadline
from penstock.wire import WireError

__all__ = ["timed_out", "transport_error"]

_REFUSED = frozenset(
    {
        errno.ECONNREFUSED,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.ENETDOWN,
        errno.EADDRNOTAVAIL,
        errno.EADDRINUSE,
        errno.EACCES,
    }
)
_RESET = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ENETRESET, errno.ESHUTDOWN, errno.ENOTCONN})


def transport_error(doing: str, error: Exception, deadline: Deadline) -> TransportError:
    """Return what ``error`` means to who was ``doing`` something (``"sending to 10.0.0.1:7"``) under ``deadline``."""
    if isinstance(error, TransportError):
        return error
    if isinstance(error, TimeoutError) and not isinstance(error, ssl.SSLError) and error.errno is None:
        return timed_out(doing, deadline)
    return TransportError(f"{doing}: {_words(error)}", code=_code(error), elapsed_s=deadline.elapsed())


def timed_out(doing: str, deadline: Deadline) -> TransportError:
    """Return the error of a call whose deadline has passed."""
    elapsed = deadline.elapsed()
    words = f"{doing}: not done within {deadline.timeout_s:g} s ({elapsed:.3f} s have passed)"
    return TransportError(words, code="timeout", elapsed_s=elapsed)


def _code(error: Exception) -> str:
    if isinstance(error, WireError):
        return "unauthorised"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "unauthorised"
    if isinstance(error, ssl.SSLError):
        return "closed" if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) else "protocol"
    if not isinstance(error, OSError):
        return "protocol"
    if isinstance(error, ConnectionAbortedError):
        return "closed"
    if isinstance(error, TimeoutError):  # ETIMEDOUT: the kernel gave up, not our deadline
        return "timeout"
    if error.errno in _RESET:
        return "reset"
    return "refused"  # the kernel would not even try: a name that resolves to nothing, no route, no more descriptors


def _words(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not believed: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)
