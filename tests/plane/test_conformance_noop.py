"""The NoOp adapter keeps the contract, alone and behind the metrics middleware."""

from __future__ import annotations

import gc

import torch
from prometheus_client import CollectorRegistry

from penstock.plane.contract import DataPlaneClient
from penstock.plane.metrics import MetricsDataPlaneClient
from penstock.plane.noop import NoOpDataPlaneClient
from penstock.testing.conformance import ConformanceSuite


def tensor_bytes(_: DataPlaneClient) -> int:
    """The bytes of every tensor that this process holds: the reference model keeps its rows as such."""
    gc.collect()
    tensors = [t for t in gc.get_objects() if type(t) is torch.Tensor]  # other tests' sparse ones have no nbytes
    return sum(t.nbytes for t in tensors if t.layout is torch.strided)


class NoOpPlane:
    """Makes clients of one in-memory plane."""

    def __init__(self) -> None:
        self._first: NoOpDataPlaneClient | None = None

    def __call__(self) -> NoOpDataPlaneClient:
        if self._first is None:
            self._first = NoOpDataPlaneClient()
            return self._first
        return self._first.peer()


class TestNoOp(ConformanceSuite):
    shares_plane = True
    measure_bytes = staticmethod(tensor_bytes)

    def make_client(self) -> DataPlaneClient:
        self.plane = getattr(self, "plane", None) or NoOpPlane()
        return self.plane()


class TestMetricsOverNoOp(TestNoOp):
    def make_client(self) -> DataPlaneClient:
        return MetricsDataPlaneClient(super().make_client(), registry=CollectorRegistry())
