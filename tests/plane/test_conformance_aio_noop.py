"""The async facade keeps the contract over the NoOp adapter: every case runs through its coroutines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest

from penstock.plane.aio import AsyncDataPlaneClient
from penstock.plane.contract import DataPlaneClient
from penstock.testing.sync_over_async import BackgroundLoop, SyncOverAsync
from tests.plane.test_conformance_noop import TestNoOp as NoOpSuite


class TestAsyncOverNoOp(NoOpSuite):
    loop: ClassVar[BackgroundLoop]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def one_loop(cls) -> Iterator[None]:
        """One loop for all cases."""
        with BackgroundLoop() as cls.loop:
            yield

    def make_client(self) -> DataPlaneClient:
        return SyncOverAsync(AsyncDataPlaneClient(super().make_client()), self.loop)
