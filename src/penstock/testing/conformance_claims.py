"""Claims: who gets which rows, when a claim waits, and what it says when it waited in vain."""

from __future__ import annotations

import threading
import time

import torch

from penstock.errors import DataPlaneBadRequest, DataPlaneTimeout, UnknownName
from penstock.testing.conformance_world import SOON_S, World, ints, later, names, raises, same, together, true


def a_claim_takes_the_oldest_rows(w: World) -> None:
    """Claims take rows oldest first, each row once per task."""
    flow = w.flow()
    flow.put(["b", "a"], x=ints(1, 2))
    flow.put(["d", "c"], x=ints(3, 4))
    same(flow.claim(batch=3).sample_ids, ["b", "a", "d"], "the first claim")
    same(flow.claim(batch=3).sample_ids, ["c"], "the second claim")
    same(flow.claim(batch=3).sample_ids, [], "the third claim")


def a_claim_describes_its_rows(w: World) -> None:
    """A claim's meta names partition, task and fields, carries the rows' tags and one lease token."""
    flow = w.flow()
    flow.put(["a", "b"], [{"t": 1, "input_lengths": 5}, {"t": 2, "input_lengths": 7}], x=ints(1, 2))
    meta = flow.take(batch=2, min_rows=2)
    same((meta.partition_id, meta.task_name, meta.fields), (flow.name, "train", ["x"]), "meta")
    same(None if meta.tags is None else [tag["t"] for tag in meta.tags], [1, 2], "tags")
    same(meta.sequence_lengths, [5, 7], "lengths from the tag input_lengths")
    same(flow.client.get_data(meta)["x"].tolist(), [1, 2], "data")
    true(meta.lease is not None and all(isinstance(token, str) for token in meta.lease), "lease: a tuple of strings")
    if w.client.get_capabilities().supports_leases:
        same(len(meta.lease or ()), 1, "tokens")


def lengths_come_from_the_first_ragged_field(w: World) -> None:
    """Without the tag input_lengths a claim's sequence_lengths are those of the first ragged field, else None."""
    flow = w.flow()
    flow.client.put_samples(["a", "b"], flow.name, {"x": ints(1, 2), "ids": [torch.arange(3), torch.arange(0)]})
    same(flow.claim().sequence_lengths, [3, 0], "lengths of a ragged field")
    plain = w.flow()
    plain.put_rows(2)
    same(plain.claim().sequence_lengths, None, "lengths of dense rows")


def a_non_blocking_claim_may_be_empty(w: World) -> None:
    """A claim that does not block returns at once what is ready, perhaps an empty meta."""
    flow = w.flow()
    same(flow.claim().size, 0, "rows of an empty partition")
    flow.put_rows(2)
    same(flow.claim(batch=8, min_rows=8).size, 2, "rows of a claim that does not wait for min_rows")


def a_claim_needs_all_its_fields(w: World) -> None:
    """A row is ready when all required fields are there; other fields do not matter."""
    flow = w.flow()
    flow.put(["a", "b"], x=ints(1, 2))
    flow.put(["b"], y=torch.ones(1))
    same(flow.claim("train", required=["x", "y"]).sample_ids, ["b"], "rows with x and y")
    same(flow.claim("prep", required=["x"]).sample_ids, ["a", "b"], "rows with x")
    flow.put(["a"], y=torch.ones(1))
    same(flow.claim("train", required=["x", "y"]).sample_ids, ["a"], "the row that was completed since")


def tasks_have_cursors_of_their_own(w: World) -> None:
    """Each task sees every row, whatever others have claimed."""
    flow = w.flow()
    keys = flow.put_rows(4)
    same(flow.claim("train", 3).sample_ids, keys[:3], "train")
    same(flow.claim("prep").sample_ids, keys, "prep")
    same(flow.claim("train").sample_ids, keys[3:], "train again")


def ranks_get_disjoint_rows(w: World) -> None:
    """Ranks that make the same claim get disjoint rows; dp_rank does not restrict them."""
    flow = w.flow()
    keys = flow.put_rows(6)
    got = [flow.claim(batch=2, dp_rank=rank).sample_ids for rank in (1, 0, 1)]
    same([key for part in got for key in part], keys, "rows of all ranks")


def concurrent_claims_are_disjoint(w: World) -> None:
    """Threads that claim at the same time share the rows out: each row to one of them, none to nobody."""
    flow = w.flow()
    keys = flow.put_rows(60)
    got: list[str] = []

    def take() -> None:
        while batch := flow.claim(batch=7).sample_ids:
            got.extend(batch)

    together(take, take, take)
    same(sorted(got), sorted(keys), "rows of all threads")


def a_claim_waits_for_min_rows(w: World) -> None:
    """A blocking claim returns once min_rows are ready, without waiting for a full batch."""
    flow = w.flow()
    flow.put_rows(1)
    got: list[str] = []
    together(
        lambda: got.extend(flow.take(batch=10, min_rows=3).sample_ids),
        later(lambda: flow.put(["late0", "late1"], x=ints(1, 2))),
    )
    same(got, ["k0", "late0", "late1"], "rows of the claim that waited")


def a_claim_that_cannot_be_served_says_why(w: World) -> None:
    """Past its deadline a claim raises DataPlaneTimeout that says how many rows were ready and what lags."""
    flow = w.flow()
    flow.put_rows(2)
    started = time.monotonic()
    with raises(DataPlaneTimeout, TimeoutError, naming=["train", "y"]) as caught:
        flow.take(required=["x", "y"], timeout_s=0.2)
    took = time.monotonic() - started
    true(0.1 <= took < SOON_S / 2, f"a deadline of 0.2 s took {took:.3f} s")
    true(caught.error.missing, "the error's field missing is empty")
    same(caught.error.partition, flow.name, "the error's partition")
    same(flow.claim().size, 2, "rows that are ready after a claim that gave up")


def a_deadline_of_zero_does_not_wait(w: World) -> None:
    """With timeout_s=0 a blocking claim takes what is ready, or raises at once."""
    flow = w.flow()
    started = time.monotonic()
    with raises(DataPlaneTimeout):
        flow.take(timeout_s=0)
    true(time.monotonic() - started < SOON_S / 2, "a deadline of 0 s was waited for")


def an_undeclared_task_is_refused(w: World) -> None:
    """A claim, or a question, by a task that was not declared is a KeyError that says "task"; no cursor appears."""
    flow = w.flow()
    flow.put_rows(1)
    with raises(UnknownName, DataPlaneBadRequest, KeyError, naming=["task", "trian"]):
        flow.claim("trian")
    with raises(UnknownName, KeyError, naming=["task", "trian"]):
        flow.take("trian", timeout_s=5.0)
    with raises(UnknownName, KeyError, naming=["task", "trian"]):
        flow.client.check_consumption_status(flow.name, ["train", "trian"])


def claim_arguments_are_checked(w: World) -> None:
    """Sizes below one, min_rows above batch_size, NaN or negative times and odd keys are ValueErrors."""
    flow = w.flow()
    flow.put_rows(2)
    for options in (
        {"batch": 0},
        {"batch": -1},
        {"batch": 1.5},
        {"batch": True},
        {"batch": 2, "min_rows": 3},
        {"min_rows": 0},
        {"lease_s": 0},
        {"lease_s": -1.0},
        {"lease_s": float("nan")},
        {"timeout_s": -1.0, "blocking": True},
        {"timeout_s": float("nan"), "blocking": True},
        {"keys": "k0"},
        {"keys": ["k0", "k0"]},
        {"keys": ["k0", ""]},
        {"required": "x"},
    ):
        with raises(DataPlaneBadRequest, ValueError):
            flow.claim(**options)
    same(flow.claim().size, 2, "rows that are ready after refused claims")


def a_claim_by_key_takes_exactly_these(w: World) -> None:
    """A claim of keys leases exactly these rows, whatever batch_size says, and no others."""
    flow = w.flow()
    flow.put_rows(5)
    same(sorted(flow.claim(batch=1, keys=["k3", "k1"]).sample_ids), ["k1", "k3"], "rows by key")
    same(flow.claim().sample_ids, ["k0", "k2", "k4"], "the others")


def a_claim_by_key_is_all_or_none(w: World) -> None:
    """While one of the keys is leased or lacks a field a claim of keys gets nothing, and leases nothing."""
    flow = w.flow()
    flow.put_rows(3)
    flow.put(["k0", "k1"], y=torch.ones(2))
    same(flow.claim(keys=["k0", "k2"], required=["x", "y"]).size, 0, "rows while one lacks a field")
    flow.claim(keys=["k1"])
    same(flow.claim(keys=["k0", "k1"]).size, 0, "rows while one is leased")
    with raises(DataPlaneTimeout, naming=["k1"]):
        flow.take(keys=["k0", "k1"], timeout_s=0.1)
    same(flow.claim(keys=["k0", "k2"]).size, 2, "rows that nobody holds")


def a_claim_of_unknown_keys_fails_at_once(w: World) -> None:
    """A claim of keys that are unknown or removed fails at once, blocking or not, and leases nothing."""
    flow = w.flow()
    flow.put_rows(2)
    for blocking in (False, True):
        with raises(DataPlaneBadRequest, KeyError, naming=["nowhere"]):
            flow.claim(keys=["k0", "nowhere"], blocking=blocking, timeout_s=SOON_S)
    flow.client.evict(["k1"], flow.name)
    started = time.monotonic()
    with raises(DataPlaneBadRequest, naming=["k1"]):
        flow.take(keys=["k0", "k1"])
    true(time.monotonic() - started < SOON_S / 2, "a claim of a removed row waited")
    same(flow.claim().sample_ids, ["k0"], "rows that are ready")


def a_claim_by_key_waits_until_the_rows_are_free(w: World) -> None:
    """A blocking claim of keys waits until all of them are ready, then takes them."""
    flow = w.flow()
    flow.put_rows(2)
    held = flow.claim(keys=["k1"])
    got: list[str] = []
    together(
        lambda: got.extend(flow.take(keys=["k0", "k1"]).sample_ids),
        later(lambda: flow.client.release(held)),
    )
    same(sorted(got), ["k0", "k1"], "rows of the claim that waited")


def a_waiting_claim_wakes_for_its_last_field(w: World) -> None:
    """A claim that waits for a field gets the row as soon as the field is put."""
    flow = w.flow()
    flow.put_rows(1)
    got: list[str] = []
    together(
        lambda: got.extend(flow.take(required=["x", "y"]).sample_ids),
        later(lambda: flow.put(["k0"], y=torch.ones(1))),
    )
    same(got, ["k0"], "rows of the claim that waited")


def waiting_claims_share_what_comes(w: World) -> None:
    """Several claims that wait get disjoint rows as they come."""
    flow = w.flow()
    got: list[str] = []
    lock = threading.Lock()

    def take() -> None:
        keys = flow.take(batch=1).sample_ids
        with lock:
            got.extend(keys)

    together(take, take, take, later(lambda: flow.put_rows(3)))
    same(sorted(got), names("k", 3), "rows of all claims")


def consumption_status_counts_claims(w: World) -> None:
    """check_consumption_status is true when every row is claimed or consumed by every named task."""
    flow = w.flow()
    flow.put_rows(2)
    same(flow.client.check_consumption_status(flow.name, ["train"]), False, "before any claim")
    flow.claim("train", 1)
    same(flow.client.check_consumption_status(flow.name, ["train"]), False, "after a claim of one row")
    flow.claim("train", 1)
    same(flow.client.check_consumption_status(flow.name, ["train"]), True, "after claims of both rows")
    same(flow.client.check_consumption_status(flow.name, ["train", "prep"]), False, "prep has claimed none")
    flow.claim("prep")
    same(flow.client.check_consumption_status(flow.name, ["train", "prep"]), True, "both tasks claimed both rows")
    flow.put_rows(1, "late")
    same(flow.client.check_consumption_status(flow.name, ["train"]), False, "after a new row")
