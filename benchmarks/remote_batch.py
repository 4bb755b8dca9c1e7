"""A batch from another host beside one plain transfer of as many bytes: 512 rows, 64 MiB, both in one run.

python benchmarks/remote_batch.py        # needs penstock[torch,ucx]

The batch is read as a trainer reads it: located at the plane, fetched, verified, made a TensorDict. Both hosts are this
machine, with an agent each; "plain" is one socket, sendall and recv_into. Medians, interleaved.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

import penstock

ROWS, ROW_FLOATS, LAPS = 512, 32_768, 15
NBYTES = ROWS * ROW_FLOATS * 4


@contextmanager
def started(*command: str) -> Iterator[dict[str, str]]:
    """Run a process of ours, from its first word on."""
    argv = [sys.executable, "-m", "penstock", *command, "--json"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()


@contextmanager
def plain() -> Iterator[Callable[[], None]]:
    """Another process that sends as many bytes whenever it is asked; yield what asks and receives."""
    listener = socket.create_server(("127.0.0.1", 0))
    other = os.fork()
    if not other:
        connection = socket.create_connection(listener.getsockname())
        data = np.ones(NBYTES, np.uint8)
        while connection.recv(1):
            connection.sendall(data)
        os._exit(0)
    connection, _ = listener.accept()
    buffer = memoryview(np.empty(NBYTES, np.uint8))

    def receive() -> None:
        connection.sendall(b".")
        done = 0
        while done < NBYTES:
            done += connection.recv_into(buffer[done:])

    try:
        yield receive
    finally:
        connection.close()
        os.waitpid(other, 0)


def main() -> None:
    with (
        plain() as receive,
        tempfile.TemporaryDirectory() as folder,
        started("serve", "--data-dir", f"{folder}/plane", "--listen", "127.0.0.1:0") as plane,
    ):
        url, token = plane["url"], plane["token_file"]
        host = ("host", "--plane", url, "--token-file", token, "--ucx-listeners", "1", "--dir")
        with (
            started(*host, f"{folder}/a"),
            started(*host, f"{folder}/b"),
            penstock.connect(url, token_file=token, host_dir=f"{folder}/a") as writer,
            penstock.connect(url, token_file=token, host_dir=f"{folder}/b") as tcp,
            penstock.connect(url, token_file=token, host_dir=f"{folder}/b", prefer="ucx") as ucx,
        ):
            writer.register_partition("p", ["x"], ROWS, ["train"])
            column = torch.randn(ROWS, ROW_FLOATS)
            batches = [[f"k{lap}_{row}" for row in range(ROWS)] for lap in range(LAPS)]
            for keys in batches:
                writer.put_samples(keys, "p", {"x": column})
            ways: dict[str, Callable[[list[str]], object]] = {
                "plain": lambda _: receive(),
                "tcp": lambda keys: tcp.get_samples(keys, "p", ["x"]),
                "ucx": lambda keys: ucx.get_samples(keys, "p", ["x"]),
            }
            times: dict[str, list[float]] = {name: [] for name in ways}
            for keys in batches:
                for name, way in ways.items():
                    began = time.perf_counter()
                    way(keys)
                    times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(laps[2:]) for name, laps in times.items()}  # two to warm up
    for name, seconds in medians.items():
        print(f"{name:6} {1e3 * seconds:6.1f} ms  {medians['plain'] / seconds:.2f} x plain")


if __name__ == "__main__":
    main()
