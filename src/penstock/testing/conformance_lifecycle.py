"""Life and limits of a client: ping, capabilities, verified removal, deadlines, close."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable

from penstock.errors import DataPlaneBadRequest, DataPlaneError, DataPlaneUnavailable
from penstock.plane.contract import DataPlaneClient
from penstock.records import DataPlaneCapabilities, KVBatchMeta
from penstock.testing.conformance_world import SOON_S, World, ints, later, raises, same, together, true


def _every_call(client: DataPlaneClient, name: str) -> dict[str, Callable[[], object]]:
    """Every method with good arguments, for a partition with row k0 and task train."""
    meta = KVBatchMeta(name, "train", ["k0"], fields=["x"])
    return {
        "register_partition": lambda: client.register_partition(name, ["x"], 1, ["prep", "train"]),
        "claim_meta": lambda: client.claim_meta(name, "train", ["x"], 1, blocking=False),
        "get_data": lambda: client.get_data(meta),
        "ack": lambda: client.ack(meta),
        "release": lambda: client.release(meta),
        "renew": lambda: client.renew(meta, 1.0),
        "check_consumption_status": lambda: client.check_consumption_status(name, ["train"]),
        "put_samples": lambda: client.put_samples(["k0"], name, {"x": ints(1)}),
        "get_samples": lambda: client.get_samples(["k0"], name, ["x"]),
        "clear_samples": lambda: client.clear_samples(["k0"], name),
        "ping": client.ping,
        "list_metadata": lambda: client.list_metadata(name),
        "depth": lambda: client.depth(name),
        "pop": lambda: client.pop(["k0"], name),
        "evict": lambda: client.evict(["k0"], name),
        "get_capabilities": client.get_capabilities,
    }


def the_adapter_has_the_contracts_surface(w: World) -> None:
    """Every method takes what the contract's takes, under the same names, in the same order, with the same defaults."""
    for name, wanted in inspect.getmembers(DataPlaneClient, inspect.isfunction):
        if name.startswith("_"):
            continue
        mine = inspect.signature(getattr(type(w.client), name)).parameters.values()
        theirs = inspect.signature(wanted).parameters.values()
        same([(p.name, p.default) for p in mine], [(p.name, p.default) for p in theirs], f"parameters of {name}")


def ping_answers(w: World) -> None:
    """Ping returns None, with and without a deadline."""
    same(w.client.ping(), None, "ping")
    same(w.client.ping(timeout_s=SOON_S), None, "ping with a deadline")


def capabilities_are_stated(w: World) -> None:
    """Capabilities are a record; what they claim is about the living plane: its incarnation does not change."""
    has = w.client.get_capabilities()
    true(isinstance(has, DataPlaneCapabilities), f"capabilities are a {type(has).__name__}")
    same(w.client.get_capabilities(), has, "capabilities asked for twice")


def removal_takes_lists(w: World) -> None:
    """Pop and evict take a list of keys: None or a string is a ValueError, an empty list does nothing."""
    flow = w.flow()
    flow.put_rows(2)
    for remove in (flow.client.pop, flow.client.evict):
        for keys in (None, "k0", [""], [1]):
            with raises(DataPlaneBadRequest, ValueError):
                remove(keys, flow.name)  # type: ignore[arg-type]
        remove([], flow.name)
    same(flow.keys(), ["k0", "k1"], "rows")


def removal_is_verified_and_idempotent(w: World) -> None:
    """Pop and evict remove exactly their rows, take absent rows and repeats for done, after a clear too."""
    flow = w.flow()
    flow.put_rows(4)
    flow.client.pop(["k0", "absent"], flow.name)
    flow.client.evict(["k1", "absent"], flow.name, "stale")
    flow.client.evict(["k1", "k0"], flow.name, "stale")
    same(flow.keys(), ["k2", "k3"], "rows")
    flow.client.clear_samples(["k0"], w.new_name())
    flow.client.clear_samples(None, w.new_name())
    same(flow.claim().sample_ids, ["k2", "k3"], "rows ready")
    flow.client.clear_samples(None, flow.name)
    flow.client.pop(["k0"], flow.name)
    flow.client.evict(["k1"], flow.name)
    same(flow.keys(), [], "rows")


def bad_deadlines_are_refused(w: World) -> None:
    """A negative, NaN or infinite timeout_s is a ValueError on every method that takes one."""
    flow = w.flow()
    flow.put_rows(1)
    for wrong in (-1.0, float("nan"), float("inf"), "1"):
        for call in (
            lambda t=wrong: flow.client.ping(timeout_s=t),
            lambda t=wrong: flow.client.get_samples(["k0"], flow.name, ["x"], timeout_s=t),
            lambda t=wrong: flow.client.put_samples(["k1"], flow.name, {"x": ints(1)}, timeout_s=t),
            lambda t=wrong: flow.client.list_metadata(flow.name, timeout_s=t),
        ):
            with raises(DataPlaneBadRequest, ValueError):
                call()
    same(flow.keys(), ["k0"], "rows")


def every_method_takes_a_deadline(w: World) -> None:
    """Every method of the contract has timeout_s; a generous one changes nothing."""
    flow = w.flow()
    for name in _every_call(flow.client, flow.name):
        true("timeout_s" in inspect.signature(getattr(flow.client, name)).parameters, f"{name} takes no timeout_s")
    flow.client.put_samples(["k0"], flow.name, {"x": ints(1)}, timeout_s=SOON_S)
    got = flow.client.get_samples(["k0"], flow.name, ["x"], timeout_s=SOON_S)
    same((got["x"].tolist(), flow.client.depth(flow.name, timeout_s=SOON_S)), ([1], 0), "results")


def a_closed_client_says_so(w: World) -> None:
    """After close every method raises DataPlaneUnavailable; closing again does nothing."""
    flow = w.flow()
    flow.put_rows(1)
    flow.client.close()
    flow.client.close()
    for name, call in _every_call(flow.client, flow.name).items():
        try:
            call()
        except DataPlaneUnavailable:
            continue
        except Exception as error:  # top frame: any other error is the finding
            raise AssertionError(f"{name} after close raised {type(error).__name__}: {error}") from error
        raise AssertionError(f"{name} after close returned")


def a_client_is_a_context_manager(w: World) -> None:
    """``with`` gives the client itself and closes it at the end."""
    client = w.client
    with client as same_client:
        true(same_client is client, "with gives another object")
        client.ping()
    with raises(DataPlaneUnavailable):
        client.ping()


def closing_ends_a_waiting_claim(w: World) -> None:
    """A claim that waits when its client is closed ends at once, with an error of the tree."""
    flow = w.flow()
    started = time.monotonic()

    def wait() -> None:
        with raises(DataPlaneError):
            flow.take(timeout_s=SOON_S * 2)

    together(wait, later(flow.client.close))
    true(time.monotonic() - started < SOON_S, "the claim waited on")
