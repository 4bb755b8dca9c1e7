"""The optional package ``ucxx``: imported when it is first needed, with what it has to know, or named as missing.

Invariants: the process's environment is as it was: the package sets variables of its own when it is imported, which
would be inherited by every process started from here; what UCX has to know is passed to it as settings. What the
package raises becomes a ``TransportError`` here and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from penstock.errors import MissingExtra, TransportError
from penstock.retry import Deadline

__all__ = ["SETTINGS", "defaults", "library", "ucx_error"]

# By the names of UCX's variables, less "UCX_". Who has set one of those variables knows better: see ``defaults``.
SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "MM_ERROR_HANDLING": "y",  # without it shared memory is not used where peers' deaths are to be noticed
        "MM_FIFO_SIZE": "512",  # 8 MiB on their way instead of 2; a segment of 64 KiB or more is one that UCX truncates
        "MM_SEG_SIZE": "16k",
        "TCP_TX_SEG_SIZE": "1m",  # 8 KiB by default: several times slower over TCP
        "TCP_RX_SEG_SIZE": "1m",
        "KEEPALIVE_INTERVAL": "1s",  # 20 s by default: a peer that died is noticed within this
    }
)


def defaults() -> dict[str, str]:
    """Return ``SETTINGS``, less those that stand in the environment, which UCX itself reads."""
    return {name: value for name, value in SETTINGS.items() if f"UCX_{name}" not in os.environ}


def library() -> Any:
    """Return the package's bindings.

    Raises:
        MissingExtra: it is not installed, or cannot be loaded here.
    """
    before = dict(os.environ)
    try:
        import ucxx._lib.libucxx as bindings
    except (ImportError, OSError) as missing:
        raise MissingExtra(
            f"the UCX wire needs the package ucxx ({missing}): pip install 'penstock[ucx]', or use the wire \"tcp\""
        ) from missing
    finally:
        os.environ.clear()
        os.environ.update(before)
    return bindings


def ucx_error(doing: str, error: Exception, deadline: Deadline) -> TransportError:
    """Return what an error of UCX means to who was ``doing`` something under ``deadline``."""
    ucx = library()
    code = "reset"  # whatever it is, the connection is gone
    if isinstance(error, ucx.UCXTimedOutError | ucx.UCXEndpointTimeoutError):
        code = "timeout"
    if isinstance(error, ucx.UCXMessageTruncatedError | ucx.UCXBufferTooSmallError):
        code = "protocol"
    if isinstance(
        error, ucx.UCXUnreachableError | ucx.UCXRejectedError | ucx.UCXNoDeviceError | ucx.UCXInvalidAddrError
    ):
        code = "refused"
    return TransportError(f"{doing}: UCX: {error}", code=code, elapsed_s=deadline.elapsed())
