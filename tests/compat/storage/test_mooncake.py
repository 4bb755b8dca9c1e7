"""The client on the real Mooncake: values of all kinds, and an owner that dies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from penstock.compat.transfer_queue_storage import PenstockMooncakeClient
from penstock.errors import BatchError, DataPlaneError, DataPlaneUnavailable
from penstock.testing.mooncake import MooncakeCluster
from tests.mooncake_fixture import StartMooncake

MIB = 1 << 20


def opened(cluster: MooncakeCluster, **options: Any) -> PenstockMooncakeClient:
    host, port = cluster.metrics_address
    section = {
        "master_server_address": cluster.master_address,
        "metadata_server": cluster.metadata_url,
        "metrics_address": f"{host}:{port}",
        "local_hostname": "127.0.0.1",
        "global_segment_size": 0,
        "local_buffer_size": 32 * MIB,
    }
    return PenstockMooncakeClient(section | options)


def test_a_batch_of_all_kinds(mooncake: MooncakeCluster) -> None:
    """Tensors, empty ones, None, b"" and objects come back in one batch, larger than the transfer memory, in order."""
    kinds: list[Any] = [torch.zeros(0), None, b"", "", {"a": (1, 2)}, torch.arange(5, dtype=torch.int8), np.arange(3)]
    values = [*kinds, *(torch.full((MIB,), float(i)) for i in range(16))]
    client = opened(mooncake)
    try:
        keys = [f"{i}@f" for i in range(len(values))]
        places = client.put(keys, values)
        back = client.get(keys, custom_backend_meta=places)
        assert back[0].shape == (0,)
        assert back[1:5] == kinds[1:5]
        assert torch.equal(back[5], kinds[5])
        assert back[6].tolist() == [0, 1, 2]
        assert all(torch.equal(a, b) for a, b in zip(back[7:], values[7:], strict=True))
        back[7][:] = -1.0
        assert client.get(keys[7:8], custom_backend_meta=places[7:8])[0][0] == 0.0
        client.clear(keys, places)
        with pytest.raises(BatchError) as caught:
            client.get(keys, custom_backend_meta=places)
        assert set(caught.value.failures) == set(keys)
    finally:
        client.close()


@pytest.mark.slow  # the stores have their own, daily
def test_an_owner_dies(mooncakes: StartMooncake) -> None:
    """With two replicas every value is read though an owner was killed; with one, those that are gone are named."""
    cluster = mooncakes(owners=2, client_ttl_s=2)
    safe, unsafe = opened(cluster, replicas=2), opened(cluster, timeout_s=6.0)
    try:
        keys = [f"{i}@f" for i in range(24)]
        values = [torch.full((4096,), float(i)) for i in range(24)]
        twice, once = safe.put(keys, values), unsafe.put(keys, values)
        cluster.kill_owner(0)
        read = safe.get(keys, custom_backend_meta=twice)
        assert all(torch.equal(a, b) for a, b in zip(read, values, strict=True))
        with pytest.raises(BatchError) as caught:
            unsafe.get(keys, custom_backend_meta=once)
        lost = set(caught.value.failures)
        assert lost
        assert all(isinstance(error, DataPlaneError) for error in caught.value.failures.values())
        if rest := [i for i, key in enumerate(keys) if key not in lost]:
            left = unsafe.get([keys[i] for i in rest], custom_backend_meta=[once[i] for i in rest])
            assert all(torch.equal(a, values[i]) for a, i in zip(left, rest, strict=True))
    finally:
        safe.close()
        unsafe.close()


def test_no_master_is_an_error_within_seconds() -> None:
    """A master that is not there is ``DataPlaneUnavailable``; left to itself the library waits for minutes."""
    nowhere = {"master_server_address": "127.0.0.1:9", "metadata_server": "127.0.0.1:9", "local_hostname": "127.0.0.1"}
    with pytest.raises(DataPlaneUnavailable):
        PenstockMooncakeClient({**nowhere, "global_segment_size": 0, "local_buffer_size": MIB, "open_timeout_s": 1.0})
