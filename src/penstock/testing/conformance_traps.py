"""The known traps: each was measured on a data plane in use, where it cost samples, time or trust."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import torch

from penstock.errors import DataPlaneBadRequest, DataPlaneError, DataPlaneTimeout, LeaseLost
from penstock.testing.conformance_world import (
    SOON_S,
    World,
    ints,
    later,
    names,
    raises,
    same,
    same_tensor,
    together,
    true,
)


def trap_01_a_get_of_present_and_missing_rows_is_an_error(w: World) -> None:
    """A get of present and missing rows raises and names the missing ones; it never returns fewer rows."""
    flow = w.flow()
    flow.put_rows(2)
    with raises(DataPlaneBadRequest, KeyError, naming=["nowhere"]) as caught:
        flow.get(["k0", "nowhere", "k1"])
    same(caught.error.keys, ["nowhere"], "the error's keys")


def trap_02_a_failed_put_leaves_no_row_listed(w: World) -> None:
    """A put that fails leaves nothing behind: no key listed, no field produced, no tag changed."""
    flow = w.flow()
    flow.put(["old"], [{"status": "before"}], x=ints(1))
    with raises(DataPlaneBadRequest):
        flow.client.put_samples(
            ["old", "new"], flow.name, {"y": torch.zeros(2), "x": torch.zeros(2, 3)}, [{"status": "after"}, {}]
        )
    same(flow.keys(), ["old"], "keys after the failed put")
    same(flow.tags("old")["status"], "before", "tags after the failed put")
    with raises(KeyError):
        flow.get(["old"], "y")
    same(flow.x(["old"]), [1], "x after the failed put")


def trap_03_one_unreadable_row_costs_one_row(w: World) -> None:
    """With on_failed="drop" one row that cannot be read costs that row, not its batch."""
    flow = w.flow()
    flow.put_rows(3)
    got, kept = flow.client.get_samples(["k0", "gone", "k2"], flow.name, ["x"], on_failed="drop")
    same_tensor(got["x"], ints(0, 2))
    same(kept.sample_ids, ["k0", "k2"], "the rows that were read")


def trap_04_rows_of_a_dead_consumer_come_back(w: World) -> None:
    """A consumer that ends after its claim loses no row: all become ready for that task again."""
    w.needs("supports_leases")
    flow = w.flow()
    doomed = flow.seen_by(w.other())
    keys = flow.put_rows(4)
    meta = doomed.claim()
    same(meta.sample_ids, keys, "the doomed consumer's rows")
    doomed.client.get_data(meta)
    same(flow.claim().size, 0, "rows ready while they are leased")
    doomed.client.close()
    same(sorted(flow.take(min_rows=4).sample_ids), keys, "rows that came back")


def trap_05_reads_never_mix_two_writers(w: World) -> None:
    """While two writers write the same rows, a read sees one writer's batch in all rows and fields, never a mixture."""
    flow = w.flow()
    keys = names("k", 8)
    flow.put(keys, x=torch.zeros(8), y=torch.zeros(8))
    seen: set[float] = set()
    done = threading.Event()

    def write(value: float) -> None:
        for _ in range(30):
            flow.put(keys, x=torch.full((8,), value), y=torch.full((8,), value))

    def read() -> None:
        while not done.is_set():
            got = flow.get(keys, "x", "y")
            values = set(got["x"].tolist()) | set(got["y"].tolist())
            true(len(values) == 1, f"one read mixed the writers: {values}")
            seen.update(values)

    def write_both() -> None:
        try:
            together(lambda: write(1.0), lambda: write(2.0))
        finally:
            done.set()

    together(read, write_both)
    true(seen, "the reader read nothing")


def trap_06_a_fields_only_put_keeps_tags(w: World) -> None:
    """A put of fields alone never writes old tags back, whoever changed them meanwhile."""
    flow = w.flow()
    flow.put(["a"], [{"status": "running", "n": 1}], x=ints(1))
    flow.put(["a"], [{"status": "finished"}])
    flow.put(["a"], y=torch.zeros(1))
    tags = flow.tags("a")
    same((tags["status"], tags["n"]), ("finished", 1), "tags after a fields-only put")


def trap_07_a_put_racing_a_clear_leaves_no_ghost(w: World) -> None:
    """After a put raced a clear every row that is listed can be read, and every other key is unknown."""
    flow = w.flow()
    keys = names("k", 4)
    for round_ in range(10):

        def put(value: int = round_) -> None:
            with suppress(DataPlaneBadRequest):  # RowRemoved: the put began before the clear
                flow.put(keys, [{"round": value} for _ in keys], x=torch.full((4,), value))

        together(put, lambda: flow.client.clear_samples(keys, flow.name))
        listed = flow.keys()
        true(listed in ([], keys), f"a batch half there: {listed}")
        if listed:
            same(flow.x(keys), [round_] * 4, "rows that are listed")
        else:
            with raises(KeyError):
                flow.get(keys)
        flow.client.clear_samples(keys, flow.name)
        same(flow.keys(), [], "rows after the clear")


def trap_08_a_stale_reference_reaches_nobody_elses_rows(w: World) -> None:
    """A meta whose rows were cleared reads and ends nothing, though other rows have taken their place since."""
    w.needs("supports_leases")
    flow, neighbour = w.flow(), w.flow()
    flow.put_rows(4)
    stale = flow.claim()
    flow.client.clear_samples(None, flow.name)
    neighbour.put(names("n", 4), x=torch.arange(4) + 100)
    with raises(KeyError):
        flow.client.get_data(stale)
    flow.client.register_partition(flow.name, ["x"], 4, ["prep", "train"])
    flow.put(stale.sample_ids, x=torch.arange(4) + 200)
    with raises(LeaseLost):
        flow.client.ack(stale)
    same(flow.x(stale.sample_ids), [200, 201, 202, 203], "the rows that took the place")
    same(neighbour.x(names("n", 4)), [100, 101, 102, 103], "the neighbour's rows")


def trap_09_a_field_keeps_its_dtype_and_rank(w: World) -> None:
    """A put whose dtype or rank differs from the field's first put is refused, naming both; nothing is cast."""
    flow = w.flow()
    flow.put(["a"], x=torch.ones(1, dtype=torch.float32))
    with raises(DataPlaneBadRequest, naming=["x", "float32", "int64"]):
        flow.put(["b"], x=ints(1))
    with raises(DataPlaneBadRequest, naming=["x"]):
        flow.put(["b"], x=torch.ones(1, 2, dtype=torch.float32))
    with raises(DataPlaneBadRequest, TypeError, naming=["x"]):
        flow.client.put_samples(["b", "c"], flow.name, {"x": [torch.ones(2), torch.ones(2, dtype=torch.int64)]})
    same(flow.keys(), ["a"], "rows after the refused puts")
    same_tensor(flow.get(["a"])["x"], torch.ones(1, dtype=torch.float32))


def trap_10_a_waiting_claim_stalls_nobody(w: World) -> None:
    """While a claim waits for rows, other calls of the same client end as if it were not there."""
    flow, busy = w.flow(), w.flow()
    busy.put_rows(2)
    ended = threading.Event()

    def wait() -> None:
        with raises(DataPlaneTimeout):
            flow.take(timeout_s=2.0)
        ended.set()

    def work() -> None:
        for _ in range(5):
            busy.put_rows(2)
            busy.x(["k0", "k1"])
            busy.client.ping()
            busy.claim("prep")
        true(not ended.is_set(), "other calls waited until the blocked claim gave up")

    together(wait, later(work))


def trap_11_a_whole_group_is_one_prompt(w: World) -> None:
    """With a row missing from one group, whole-group claims hand out other groups whole and never mix two prompts."""
    flow = w.flow()
    flow.put_group("a", 3, 4)
    flow.put_group("b", 4, 4)
    flow.put_group("c", 4, 4)
    meta = flow.claim(batch=4, whole_groups=True)
    same(meta.sample_ids, names("b_g", 4), "the first whole group")
    meta = flow.claim(batch=8, whole_groups=True)
    same(meta.sample_ids, names("c_g", 4), "the second whole group")
    same(flow.claim(batch=8, whole_groups=True).size, 0, "rows of the incomplete group")


def trap_12_clearing_rows_frees_their_memory(w: World) -> None:
    """Clearing all but one of many rows frees the memory of those that were cleared."""
    flow = w.flow()
    before = w.measured_bytes()
    rows, width = 2000, 1024
    keys = names("k", rows)
    flow.client.put_samples(keys, flow.name, {"x": torch.zeros(rows, width)})
    payload = rows * width * 4
    true(w.measured_bytes() - before >= payload, "measure_bytes does not see the payload")
    flow.client.clear_samples(keys[1:], flow.name)
    deadline = time.monotonic() + SOON_S
    while w.measured_bytes() - before > payload // 5 and time.monotonic() < deadline:
        flow.client.ping()
    held = w.measured_bytes() - before
    true(held <= payload // 5, f"{held} bytes are held for one row of {width * 4}")
    same(flow.keys(), ["k0"], "rows that are left")


def errors_are_one_tree(w: World) -> None:
    """What a caller's mistake raises is of the tree and of the built-in kind that existing callers catch."""
    flow = w.flow()
    mistakes = (
        (lambda: flow.claim("mistyped"), KeyError),
        (lambda: flow.claim(batch=0), ValueError),
        (lambda: flow.get(["nowhere"]), KeyError),
        (lambda: flow.put(["a"], [{"t": object()}], x=ints(1)), TypeError),
    )
    for call, kind in mistakes:
        with raises(DataPlaneError, kind):
            call()
