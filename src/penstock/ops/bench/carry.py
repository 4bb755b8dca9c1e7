"""One carrier in a process of its own: starts its other end in another, fetches when told, over a pair of pipes.

Invariants: the end of the orders is an order to end, for the other end too; a failure is an answer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import AsyncIterator
from typing import Any

from penstock.ops.bench.carrier import MAX_BYTES, WAIT_S, Carrier
from penstock.ops.bench.carriers import make_carrier

__all__ = ["main"]

_END_S = 5.0


async def _serve(name: str) -> None:
    """The other end: until whoever started it is gone."""

    async def tell(told: str) -> None:
        print(told, flush=True)  # noqa: T201 - its parent reads it

    serving = asyncio.create_task(make_carrier(name).serve(tell))
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    serving.cancel()
    os._exit(0)  # threads of libraries and blocking sockets are not waited for


@contextlib.asynccontextmanager
async def _other_end(name: str) -> AsyncIterator[str]:
    """Start the other end; yield how it is reached."""
    command = [sys.executable, "-m", "penstock.ops.bench.carry", name, "-1"]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield (await asyncio.wait_for(process.stdout.readline(), WAIT_S)).decode().strip()
    finally:
        process.stdin.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _END_S)
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _carry_out(carrier: Carrier, buffer: memoryview, order: dict[str, Any]) -> dict[str, Any]:
    """Fetch ``nbytes`` so many ``times``; each into the same memory, which is checked afterwards."""
    target = buffer[: order["nbytes"]]
    target[:1] = target[-1:] = b"\0"
    seconds = []
    for _ in range(order["times"]):
        spent, begun = time.process_time(), time.perf_counter()
        await carrier.fetch(target)
        seconds.append((time.perf_counter() - begun, time.process_time() - spent))
    if target[0] != 1 or target[-1] != 1:
        raise ValueError("what arrived is not what was sent")
    return {"seconds": [wall for wall, _ in seconds], "cpu_s": [cpu for _, cpu in seconds]}


async def _client(name: str, answers: int) -> None:
    buffer = memoryview(bytearray(b"\x02") * MAX_BYTES)
    carrier = make_carrier(name)
    loop = asyncio.get_running_loop()
    with os.fdopen(answers, "w") as out:
        async with contextlib.AsyncExitStack() as opened:
            while line := await loop.run_in_executor(None, sys.stdin.readline):
                try:
                    order = json.loads(line)
                    if order["do"] == "open":
                        await carrier.open(await opened.enter_async_context(_other_end(name)))
                        answer: dict[str, Any] = {"versions": {}}
                    else:
                        answer = await _carry_out(carrier, buffer, order)
                except Exception as error:  # noqa: BLE001  # top frame of a process: its failure is the answer
                    traceback.print_exc()
                    answer = {"error": f"{type(error).__name__}: {error}"}
                print(json.dumps(answer), file=out, flush=True)
            await carrier.close()


def main() -> None:
    """Answer orders until they end; with a descriptor below 0, be the other end."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("carrier")
    arguments.add_argument("answers", type=int, help="descriptor")
    chosen = arguments.parse_args()
    asyncio.run(_serve(chosen.carrier) if chosen.answers < 0 else _client(chosen.carrier, chosen.answers))


if __name__ == "__main__":
    main()
