"""What carries bytes between two processes, one module each: our wires, and what they are compared with."""

from __future__ import annotations

from collections.abc import Callable

from penstock.ops.bench.carrier import Carrier

__all__ = ["CARRIERS", "MEMCPY", "SOCKETS", "make_carrier"]

MEMCPY, SOCKETS = "memcpy", "sockets"
CARRIERS: dict[str, tuple[str, ...]] = {  # name -> distributions without which it is skipped
    MEMCPY: (),
    SOCKETS: (),
    "tcp": (),
    "tls": (),
    "ucxx": ("ucxx-cu12",),
    "ucx": ("ucxx-cu12",),
}


def make_carrier(name: str) -> Carrier:
    """Return the carrier of that name."""
    from penstock.ops.bench.carriers.copying import Copying
    from penstock.ops.bench.carriers.own import own_tcp, own_tls, own_ucx
    from penstock.ops.bench.carriers.sockets import PlainSockets
    from penstock.ops.bench.carriers.ucxx import PlainUcxx

    makers: dict[str, Callable[[], Carrier]] = {
        MEMCPY: Copying,
        SOCKETS: PlainSockets,
        "tcp": own_tcp,
        "tls": own_tls,
        "ucxx": PlainUcxx,
        "ucx": own_ucx,
    }
    return makers[name]()
