"""A peer in a process of its own: says back what it is told, until it is killed. ``python -m ... KIND PORT``."""

from __future__ import annotations

import asyncio
import sys

from penstock.endpoint.endpoints import Endpoint
from penstock.endpoint.peering import Peering
from penstock.endpoint.resources import Resources
from penstock.endpoint.wire_resources import WireResources
from tests.endpoint.peers import CALM, echo, tcp


async def resources(kind: str) -> Resources:
    """Resources over that wire, ready for peers of this machine."""
    if kind == "ucx":
        from penstock.transport.wires.ucx_resources import UcxResources

        return UcxResources()
    made = WireResources(tcp("peer-data"))
    await made.start("127.0.0.1")
    return made


async def main(kind: str, port: int) -> None:
    async def serve(endpoint: Endpoint) -> None:
        await echo(endpoint)

    peering = Peering({kind: await resources(kind)}, tcp("peer"), serve=serve, timing=CALM)
    print((await peering.start("127.0.0.1", port)).port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
