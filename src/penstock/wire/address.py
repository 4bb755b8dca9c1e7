"""Where a listener is reached, and how people write that down.

Invariant: what ``Address.parse`` accepts is what ``str`` of it gives back.
"""

from __future__ import annotations

from typing import NamedTuple, Self

from penstock.errors import BadArgument

__all__ = ["Address"]

_MAX_PORT = 65535
_MAX_HOST = 253  # characters of a name in DNS, RFC 1035


class Address(NamedTuple):
    """A host, by name or number, and a TCP port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the address written as ``HOST:PORT`` or ``[IPV6]:PORT``.

        Raises:
            BadArgument: it is not written so; says what is wrong.
        """
        host, colon, digits = text.rpartition(":")
        if not colon or not _is_port(digits):
            raise BadArgument(f"{text!r} is not HOST:PORT with a port of 0 to {_MAX_PORT}")
        if host.startswith("[") and host.endswith("]") and ":" in host:
            host = host[1:-1]
        elif ":" in host:
            raise BadArgument(f"{text!r}: write an IPv6 address in brackets, as [::1]:{digits}")
        if not 0 < len(host) <= _MAX_HOST or not host.isprintable() or any(c in host for c in " /@[]"):
            raise BadArgument(f"{text!r} names no host")
        return cls(host, int(digits))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _is_port(digits: str) -> bool:
    """Whether it is a port as ``str`` would write it. Its length first: what is longer is no number worth reading."""
    if not 0 < len(digits) <= len(str(_MAX_PORT)) or not digits.isascii() or not digits.isdigit():
        return False
    return digits == str(int(digits)) and int(digits) <= _MAX_PORT
