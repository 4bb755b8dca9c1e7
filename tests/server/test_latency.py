"""What one client does costs the others nothing, and the loop is never held for long. Margins are wide: CI is busy."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from penstock.ledger.journal import Journal
from penstock.requests import Depth, Done, Evict, Ping, RegisterPartition
from penstock.wire import paths
from tests.server.harness import PlaneProcess, RawClient, eventually


def _longest_ping(client: RawClient, stop: threading.Event) -> tuple[float, int]:
    longest, count = 0.0, 0
    while not stop.is_set():
        began = time.monotonic()
        client.expect(Done, Ping())
        longest, count = max(longest, time.monotonic() - began), count + 1
    return longest, count


def test_an_under_filled_claim_costs_others_nothing(tmp_path: Path) -> None:
    """While claims wait for rows that never come, other clients' calls are answered at once (trap 10)."""
    with PlaneProcess(tmp_path / "d") as plane, RawClient(plane.data_dir, 1) as client:
        client.open().register()
        client.put(["a"])
        waiters = [RawClient(plane.data_dir, 10 + i).open() for i in range(8)]
        calls = [waiter.send_claim(100, min_rows=50, deadline_s=1.0) for waiter in waiters]
        eventually("they wait", lambda: client.status().partitions[0].waiting_claims == 8)
        slowest = 0.0
        for _ in range(100):
            began = time.monotonic()
            client.expect(type(client.call(Depth("p"))), Depth("p"))
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < 0.5  # the peer: 5 s each
        for waiter, call_id in zip(waiters, calls, strict=True):
            assert "DataPlaneTimeout" in str(waiter.receive(call_id))
            waiter.close()


def test_the_loop_is_not_held(tmp_path: Path) -> None:
    """While rows are put by the thousand and a checkpoint is written, a ping is answered soon."""
    data = tmp_path / "d"
    with PlaneProcess(data, segment_bytes=65536) as plane, RawClient(data, 1) as client:
        client.open().register()
        stop = threading.Event()
        seen: list[tuple[float, int]] = []
        with RawClient(data, 2) as pinger:
            pinger.open()
            thread = threading.Thread(target=lambda: seen.append(_longest_ping(pinger, stop)))
            thread.start()
            for put in range(30):
                client.put([f"{put}-{i}" for i in range(500)])
                if put > 10:
                    client.expect(Done, Evict("p", [f"{put - 10}-{i}" for i in range(500)], "stale"))
            eventually("a checkpoint", lambda: "checkpoint done" in plane.log())
            stop.set()
            thread.join()
        longest, count = seen[0]
        assert count > 50
        assert longest < 1.0  # on an idle machine a few ms
        size = sum(path.stat().st_size for path in paths.journal_dir(data).iterdir())
        plane.kill()
    journal = Journal.open(paths.journal_dir(data), 65536)
    assert any(entry.checkpoint for entry in journal.entries())
    journal.close()
    assert size < 4 * 1024 * 1024


def test_a_checkpoint_drops_what_it_restated_and_loses_nothing(tmp_path: Path) -> None:
    """The journal stays small though much is written, and every row is there after kill -9."""
    data = tmp_path / "d"
    with PlaneProcess(data, segment_bytes=20_000) as plane, RawClient(data) as client:
        client.open().register()
        client.put(["kept"], fill=1)
        for i in range(400):
            client.expect(Done, RegisterPartition("p", ["x", f"f{i % 7}"], 8, ["train"]))
            client.put([f"k{i}"])
            client.expect(Done, Evict("p", [f"k{i}"], "stale"), done_below=client.seq)
        eventually("a checkpoint", lambda: "checkpoint done" in plane.log())
        plane.kill()
        with PlaneProcess(data), RawClient(data) as back:
            back.resumed_as(client)
            assert back.read(["kept"]) == [1]
            (audit,) = back.audit().partitions
            assert (audit.put, sum(audit.evicted.values()), audit.residue) == (401, 400, 0)
