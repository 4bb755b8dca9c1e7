"""Leases and fencing: who may end what, what a late or repeated call does, and what a removed row remembers."""

from __future__ import annotations

from collections.abc import Callable

import torch

from penstock.errors import BadArgument, DataPlaneBadRequest, LeaseLost, RowRemoved
from penstock.records import KVBatchMeta
from penstock.testing.conformance_world import SOON_S, Flow, World, ints, names, raises, same, true

_BRIEF_S = 0.05  # a lease that is meant to expire
_LONG_S = 600.0


def _leased_flow(w: World, n: int = 2) -> Flow:
    w.needs("supports_leases")
    flow = w.flow()
    flow.put_rows(n)
    return flow


def _superseded(flow: Flow, task: str = "train") -> tuple[KVBatchMeta, KVBatchMeta]:
    """Return a meta whose lease expired and the one that took its rows since."""
    late = flow.claim(task, lease_s=_BRIEF_S)
    return late, flow.take(task, min_rows=late.size)


# -- ack --------------------------------------------------------------------------------------------------------------


def the_final_tasks_ack_removes_rows(w: World) -> None:
    """An ack by the last of consumer_tasks removes the rows as trained."""
    flow = _leased_flow(w, 3)
    flow.client.ack(flow.claim("train", 2))
    same(flow.keys(), ["k2"], "rows that are left")
    with raises(KeyError):
        flow.get(["k0"])
    same(flow.client.check_consumption_status(flow.name, ["train"]), False, "with one row left")
    flow.client.ack(flow.claim("train"))
    same(flow.client.check_consumption_status(flow.name, ["train"]), True, "when all rows were trained")


def another_tasks_ack_consumes_for_it_alone(w: World) -> None:
    """An ack by any other task consumes the rows for that task; they stay for the rest."""
    flow = _leased_flow(w)
    flow.client.ack(flow.claim("prep"))
    same(flow.keys(), ["k0", "k1"], "rows that are left")
    same(flow.claim("prep").size, 0, "rows ready for prep")
    same(flow.claim("train").sample_ids, ["k0", "k1"], "rows ready for train")


def an_ack_can_be_repeated(w: World) -> None:
    """An ack that succeeded succeeds again and changes nothing, for every task."""
    flow = _leased_flow(w)
    for task in ("prep", "train"):
        meta = flow.claim(task)
        for _ in range(3):
            flow.client.ack(meta)
    same(flow.keys(), [], "rows")


def an_ack_needs_a_lease_and_a_task(w: World) -> None:
    """An ack of rows that were never claimed is LeaseLost; one of a meta without a task is a ValueError."""
    flow = _leased_flow(w)
    with raises(LeaseLost, DataPlaneBadRequest, naming=["k0"]):
        flow.client.ack(KVBatchMeta(flow.name, "train", ["k0"]))
    with raises(LeaseLost):
        flow.client.ack(KVBatchMeta(flow.name, "train", ["k0"], lease=("no.such.token",)))
    for call in (flow.client.ack, flow.client.release, lambda meta: flow.client.renew(meta, 1.0)):
        with raises(BadArgument, ValueError):
            call(KVBatchMeta(flow.name, None, ["k0"]))
    same(flow.keys(), ["k0", "k1"], "rows")


def a_meta_without_lease_uses_the_clients_memory(w: World) -> None:
    """A client acks its own rows though the meta lost its tokens on the way."""
    flow = _leased_flow(w)
    flow.claim()
    flow.client.ack(KVBatchMeta(flow.name, "train", ["k1", "k0"]))
    same(flow.keys(), [], "rows")


def parts_of_a_claim_can_be_finished_apart(w: World) -> None:
    """Subsets of a claim carry its lease: one part is acked, another released; joined metas end together."""
    flow = _leased_flow(w, 4)
    meta = flow.claim()
    flow.client.ack(meta.subset([0]))
    flow.client.release(meta.subset([1]))
    more = flow.claim()
    same(more.sample_ids, ["k1"], "the released part")
    flow.client.ack(meta.subset([2, 3]).concat(more))
    same(flow.keys(), [], "rows")


def a_token_is_good_in_another_session(w: World) -> None:
    """Who has the meta may finish its rows: the token counts, not the session that claimed."""
    flow = _leased_flow(w)
    meta = flow.claim()
    w.other().ack(meta)
    same(flow.keys(), [], "rows")


# -- release, renew, expiry -------------------------------------------------------------------------------------------


def released_rows_are_ready_again(w: World) -> None:
    """A release makes rows ready at once, oldest first again; a second release changes nothing."""
    flow = _leased_flow(w, 3)
    meta = flow.claim(batch=2)
    flow.client.release(meta)
    flow.client.release(meta)
    same(flow.claim().sample_ids, ["k0", "k1", "k2"], "rows after the release")
    with raises(LeaseLost):
        flow.client.release(meta)


def an_expired_lease_gives_rows_back(w: World) -> None:
    """A lease that ends by time gives its rows back, and a claim that waits for them gets them."""
    flow = _leased_flow(w)
    late, now = _superseded(flow)
    same(sorted(now.sample_ids), sorted(late.sample_ids), "rows")
    true(set(now.lease or ()).isdisjoint(late.lease or ()), "a new claim has a new token")


def a_slow_consumer_may_still_ack(w: World) -> None:
    """An expired lease that nobody superseded is still good: the slow consumer's ack is done."""
    flow = _leased_flow(w)
    late = flow.claim("prep", lease_s=_BRIEF_S)
    _until_ready(flow, "prep")
    flow.client.ack(late)
    same(flow.claim("prep").size, 0, "rows ready for prep after the late ack")


def _until_ready(flow: Flow, task: str) -> None:
    """Wait until the task's rows are ready again, without claiming them."""
    while not flow.client.list_metadata(flow.name, ready_for=task):
        flow.client.ping()


def a_superseded_consumer_is_refused(w: World) -> None:
    """Once another claim has the rows, the late consumer's ack, release, renewal and pop are LeaseLost."""
    flow = _leased_flow(w)
    late, now = _superseded(flow)
    calls: list[Callable[[], object]] = [
        lambda: flow.client.ack(late),
        lambda: flow.client.release(late),
        lambda: flow.client.renew(late, 1.0),
        lambda: flow.client.pop(late.sample_ids, flow.name, lease=late.lease),
    ]
    for call in calls:
        with raises(LeaseLost, DataPlaneBadRequest):
            call()
    same((flow.keys(), flow.claim().size), (["k0", "k1"], 0), "rows, rows ready")
    flow.client.ack(now)
    same(flow.keys(), [], "rows after the ack of the holder")


def one_lost_row_refuses_the_batch(w: World) -> None:
    """An ack, release or pop of which one row is lost changes nothing of the others, and names the row."""
    flow = _leased_flow(w)
    late = flow.claim(lease_s=_BRIEF_S)
    flow.take(keys=["k1"])
    for call in (flow.client.ack, flow.client.release, lambda meta: flow.client.renew(meta, 5.0)):
        with raises(LeaseLost, naming=["k1"]) as caught:
            call(late)
        same(caught.error.keys, ["k1"], "keys of the error")
    with raises(LeaseLost, naming=["k1"]):
        flow.client.pop(["k0", "k1"], flow.name, lease=late.lease)
    same(flow.keys(), ["k0", "k1"], "rows")


def a_renewed_lease_lasts(w: World) -> None:
    """A renewal moves the end of a lease; None leases until the session ends."""
    flow = _leased_flow(w, 3)
    brief, renewed, bound = (flow.claim(batch=1, lease_s=s) for s in (4 * _BRIEF_S, 4 * _BRIEF_S, 4 * _BRIEF_S))
    flow.client.renew(renewed, _LONG_S)
    flow.client.renew(bound, None)
    same(flow.take().sample_ids, brief.sample_ids, "the row whose lease was not renewed")
    same(flow.claim().size, 0, "rows whose leases were")
    flow.client.ack(renewed.concat(bound))
    same(flow.keys(), brief.sample_ids, "rows that are left")


def rows_that_are_never_finished_are_set_aside(w: World) -> None:
    """A row that comes back carries its delivery count; at last it goes to quarantine, its neighbours do not."""
    flow = _leased_flow(w, 1)
    tries = 0
    while flow.client.list_metadata(flow.name) and tries < 100:
        meta = flow.claim(lease_s=0.002)
        tries += meta.size
        same([tag.get("deliveries", 1) for tag in meta.tags or []], [tries] * meta.size, "delivery counts")
    true(1 < tries < 100, f"deliveries of the row: {tries}")
    flow.put_rows(1, "fresh")
    same(flow.take().sample_ids, ["fresh0"], "rows that are still handed out")


# -- pop, evict, clear ------------------------------------------------------------------------------------------------


def anyone_may_pop_what_nobody_leases(w: World) -> None:
    """Rows that the final task has not leased may be popped by anyone; leases of other tasks do not matter."""
    flow = _leased_flow(w, 3)
    flow.claim("prep")
    flow.client.pop(["k0", "k1"], flow.name)
    same(flow.keys(), ["k2"], "rows")


def popping_your_own_rows_needs_no_token(w: World) -> None:
    """The client remembers its leases: it pops what it claimed by key alone."""
    flow = _leased_flow(w)
    flow.client.pop(flow.claim().sample_ids, flow.name)
    same(flow.keys(), [], "rows")


def released_rows_may_be_popped(w: World) -> None:
    """A row whose lease was released is nobody's: the client that released it pops it as anyone may."""
    flow = _leased_flow(w)
    flow.client.release(flow.claim())
    flow.client.pop(["k0"], flow.name)
    w.other().pop(["k1"], flow.name)
    same(flow.keys(), [], "rows")


def popping_leased_rows_needs_their_token(w: World) -> None:
    """Rows that somebody else leases are popped with that lease's token only; all or none."""
    flow = _leased_flow(w, 3)
    meta = flow.claim(batch=2)
    stranger = w.other()
    with raises(LeaseLost, naming=["k0"]):
        stranger.pop(["k2", "k0"], flow.name)
    with raises(LeaseLost):
        stranger.pop(["k0"], flow.name, lease="no.such.token")
    same(flow.keys(), ["k0", "k1", "k2"], "rows after refused pops")
    stranger.pop(["k0", "k1"], flow.name, lease=meta.lease)
    same(flow.keys(), ["k2"], "rows after the pop with the token")


def a_pop_can_be_repeated(w: World) -> None:
    """A pop succeeds again, without a token or with the one that ended the rows; any other token is LeaseLost."""
    flow = _leased_flow(w)
    meta = flow.claim()
    flow.client.pop(meta.sample_ids, flow.name, lease=meta.lease)
    flow.client.pop(meta.sample_ids, flow.name, lease=meta.lease)
    flow.client.pop(meta.sample_ids, flow.name)
    w.other().pop(meta.sample_ids, flow.name)
    with raises(LeaseLost):
        flow.client.pop(meta.sample_ids, flow.name, lease="no.such.token")
    flow.client.ack(meta)


def eviction_ends_other_peoples_leases(w: World) -> None:
    """Evict and clear remove rows whoever leases them; the holder's late ack of them is LeaseLost."""
    flow = _leased_flow(w, 4)
    meta = flow.claim()
    other = w.other()
    other.evict(["k0", "k1"], flow.name, "stale")
    other.clear_samples(["k2"], flow.name)
    same(flow.keys(), ["k3"], "rows")
    with raises(LeaseLost, naming=["k0"]):
        flow.client.ack(meta.subset([0, 1, 2]))
    with raises(LeaseLost, naming=["k2"]):
        flow.client.pop(meta.sample_ids, flow.name, lease=meta.lease)
    same(flow.keys(), ["k3"], "rows after the late ack")
    flow.client.ack(meta.subset([3]))
    same(flow.keys(), [], "rows after the ack of the last")


def a_closing_client_gives_its_leases_back(w: World) -> None:
    """The end of a session gives its leases back; its rows and its puts stay."""
    flow = _leased_flow(w, 1)
    leaver = flow.seen_by(w.other())
    leaver.put(["theirs"], x=ints(9))
    meta = leaver.claim()
    same(meta.size, 2, "rows of the leaver")
    leaver.client.close()
    same(flow.take(min_rows=2).sample_ids, ["k0", "theirs"], "rows that came back")
    with raises(LeaseLost):
        flow.client.ack(meta)


# -- tombstones -------------------------------------------------------------------------------------------------------


def a_late_copy_of_a_put_changes_nothing(w: World) -> None:
    """Repeating a put whose rows were trained meanwhile succeeds and does not bring them back."""
    flow = _leased_flow(w)
    flow.client.ack(flow.claim())
    flow.put_rows(2)
    same((flow.keys(), flow.claim().size), ([], 0), "rows, rows ready")


def a_late_write_is_refused_whole(w: World) -> None:
    """A late column, other content or a tag for a trained row is RowRemoved naming it; the batch applies nothing."""
    flow = _leased_flow(w)
    flow.client.ack(flow.claim(batch=1))
    calls: list[Callable[[], object]] = [
        lambda: flow.put(["k1", "k0"], y=torch.ones(2)),
        lambda: flow.put(["k0", "new"], x=ints(7, 7)),
        lambda: flow.put(["k1", "k0"], [{"t": 1}, {"t": 1}], x=ints(8, 8)),
    ]
    for call in calls:
        with raises(RowRemoved, DataPlaneBadRequest, naming=["k0"]) as caught:
            call()
        same(caught.error.keys, ["k0"], "keys of the error")
    with raises(DataPlaneBadRequest):
        flow.client.put_samples(["k0"], flow.name, tags=[{"t": 1}])
    same((flow.keys(), flow.x(["k1"])), (["k1"], [1]), "rows, x")
    same("t" in flow.tags("k1"), False, "a tag of the refused put is there")
    with raises(KeyError):
        flow.get(["k1"], "y")


def evicted_and_popped_rows_stay_gone(w: World) -> None:
    """Late writes to evicted and to popped rows are refused as those to trained ones are."""
    flow = _leased_flow(w)
    flow.client.evict(["k0"], flow.name)
    flow.client.pop(["k1"], flow.name)
    for key in ("k0", "k1"):
        with raises(RowRemoved, naming=[key]):
            flow.put([key], x=ints(99))
    same(flow.keys(), [], "rows")


def a_put_after_a_clear_makes_new_rows(w: World) -> None:
    """A clear, unlike a pop, leaves the keys free: what is put later is new, and not consumed by anyone."""
    flow = _leased_flow(w)
    flow.client.ack(flow.claim("prep"))
    flow.client.clear_samples(names("k", 2), flow.name)
    flow.put_rows(2)
    same((flow.claim("prep").size, flow.claim("train").size), (2, 2), "rows ready for prep, train")


def a_cleared_partition_remembers_nothing(w: World) -> None:
    """After clear_samples(None) and a new registration all keys are free, those of trained and evicted rows too."""
    flow = _leased_flow(w, 3)
    flow.client.ack(flow.claim(batch=1))
    flow.client.evict(["k1"], flow.name)
    flow.client.clear_samples(None, flow.name)
    flow.client.register_partition(flow.name, ["x"], 3, ["prep", "train"])
    flow.put(names("k", 3), x=ints(7, 8, 9))
    same(flow.x(names("k", 3)), [7, 8, 9], "rows of the next step under the same keys")


def writing_again_does_not_reset_consumption(w: World) -> None:
    """A row that a task has claimed or consumed is not handed to it again because it was written again."""
    flow = _leased_flow(w, 2)
    flow.client.ack(flow.claim("prep", 1))
    flow.claim("prep", 1)
    flow.put_rows(2)
    flow.put(names("k", 2), [{"t": 1}] * 2, y=torch.ones(2))
    same(flow.claim("prep").size, 0, "rows ready for prep")
    same(flow.take("train", timeout_s=SOON_S).size, 2, "rows ready for train")
