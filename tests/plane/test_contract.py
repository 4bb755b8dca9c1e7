"""The surface of the contract, pinned: a change here is a change for every user and every adapter."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from penstock.errors import BadArgument, DataPlaneClearError
from penstock.plane.contract import DataPlaneClient
from penstock.plane.metrics import MetricsDataPlaneClient
from penstock.plane.noop import NoOpDataPlaneClient
from penstock.records import DataPlaneGroupMeta

SURFACE = {
    "ack": "meta, *timeout_s=None",
    "check_consumption_status": "partition_id, task_names, *timeout_s=None",
    "claim_meta": "partition_id, task_name, required_fields, batch_size, dp_rank=None, blocking=True, timeout_s=60.0, "
    "*min_rows=1, *keys=None, *whole_groups=False, *lease_s=None",
    "clear_samples": "sample_ids, partition_id, *timeout_s=None",
    "close": "*timeout_s=None",
    "depth": "partition_id, *timeout_s=None",
    "evict": "keys, partition_id, reason='stale', *timeout_s=None",
    "get_capabilities": "*timeout_s=None",
    "get_data": "meta, select_fields=None, *on_failed='raise', *timeout_s=None",
    "get_samples": "sample_ids, partition_id, select_fields, *on_failed='raise', *timeout_s=None",
    "list_metadata": "partition_id, *committed=None, *min_weight_version=None, *max_weight_version=None, "
    "*older_than_s=None, *ready_for=None, *limit=None, *after=None, *timeout_s=None",
    "ping": "timeout_s=None",
    "pop": "keys, partition_id, *lease=None, *timeout_s=None",
    "put_samples": "sample_ids, partition_id, fields=None, tags=None, *timeout_s=None",
    "register_partition": "partition_id, fields, num_samples, consumer_tasks, grpo_group_size=None, enums=None, "
    "*group_policy=None, *timeout_s=None",
    "release": "meta, *timeout_s=None",
    "renew": "meta, lease_s, *timeout_s=None",
}


def shown(parameter: inspect.Parameter) -> str:
    star = "*" if parameter.kind is parameter.KEYWORD_ONLY else ""
    default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
    return f"{star}{parameter.name}{default}"


def surface(kind: type[DataPlaneClient]) -> dict[str, str]:
    methods = inspect.getmembers(kind, inspect.isfunction)
    return {
        name: ", ".join(shown(p) for p in list(inspect.signature(method).parameters.values())[1:])
        for name, method in methods
        if name in SURFACE or (kind is DataPlaneClient and not name.startswith("_"))
    }


@pytest.mark.parametrize("kind", [DataPlaneClient, NoOpDataPlaneClient, MetricsDataPlaneClient])
def test_the_surface_is_pinned(kind: type[DataPlaneClient]) -> None:
    """Names, order, defaults and keyword-only arguments of every method are those that callers rely on."""
    assert surface(kind) == SURFACE


def test_all_but_three_methods_are_for_adapters_to_write() -> None:
    """depth, pop and evict have a default in terms of the others; every other method is abstract."""
    assert set(SURFACE) - DataPlaneClient.__abstractmethods__ == {"depth", "pop", "evict"}


def test_every_method_says_what_it_does() -> None:
    """Each public method has a docstring."""
    assert [name for name in SURFACE if not getattr(DataPlaneClient, name).__doc__] == []


class Defaults(NoOpDataPlaneClient):
    """A client with the contract's own depth, pop and evict."""

    depth = DataPlaneClient.depth
    pop = DataPlaneClient.pop
    evict = DataPlaneClient.evict


class Stubborn(Defaults):
    """Reports success of clears that did nothing."""

    def clear_samples(self, *_: Any, **__: Any) -> None:
        return


def filled(client: NoOpDataPlaneClient) -> NoOpDataPlaneClient:
    client.register_partition("p", ["x"], 3, ["train"])
    tags = [{"group_id": "g", "committed": True, "num_keys": 2}] * 2 + [{"committed": True, "num_keys": 2}]
    client.put_samples(["a", "b", "c"], "p", {"x": [1, 2, 3]}, tags)
    return client


def test_depth_counts_committed_and_complete_groups() -> None:
    """The default depth counts what list_metadata says is committed and complete."""
    assert filled(Defaults()).depth("p") == 1


def test_pop_and_evict_are_verified_clears() -> None:
    """The defaults remove the rows, name those that are still there, and take lists only."""
    client = filled(Defaults())
    client.pop(["a"], "p")
    client.evict(["b", "absent"], "p")
    client.pop([], "p")
    assert [group.keys for group in client.list_metadata("p")] == [["c"]]
    for remove in (client.pop, client.evict):
        for keys in (None, "c"):
            with pytest.raises(BadArgument):
                remove(keys, "p")  # type: ignore[arg-type]


def test_a_clear_that_lies_is_found_out() -> None:
    """A clear that reports success though rows are there is a DataPlaneClearError naming them."""
    client = filled(Stubborn())
    with pytest.raises(DataPlaneClearError) as caught:
        client.pop(["b", "a", "absent"], "p")
    assert caught.value.keys == ["b", "a"]


def test_groups_of_the_default_are_records() -> None:
    """list_metadata gives group metas."""
    assert all(isinstance(g, DataPlaneGroupMeta) for g in filled(Defaults()).list_metadata("p"))
