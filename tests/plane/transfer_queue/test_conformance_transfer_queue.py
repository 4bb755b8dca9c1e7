"""The adapter onto a real TransferQueue keeps the contract, and does so with its payload in TransferQueue's storage."""

from __future__ import annotations

import pytest

from penstock import connect
from penstock.plane.contract import DataPlaneClient
from penstock.testing.conformance import ConformanceSuite
from tests.plane.transfer_queue.queues import stored_bytes


@pytest.mark.usefixtures("queue")
class TestTransferQueue(ConformanceSuite):
    shares_plane = True
    measure_bytes = staticmethod(stored_bytes)

    def make_client(self) -> DataPlaneClient:
        return connect("transferqueue://")
