"""Groups: what list_metadata derives from tags, filters, depth, and groups that are handed out whole or not at all."""

from __future__ import annotations

import time

from penstock.errors import DataPlaneBadRequest, DataPlaneTimeout, RowRemoved
from penstock.records import GroupPolicy
from penstock.testing.conformance_world import SOON_S, Flow, World, ints, later, names, raises, same, together, true

_BRIEF_S = 0.05


def _ids(flow: Flow, **filters: object) -> list[str]:
    return [group.group_id for group in flow.client.list_metadata(flow.name, **filters)]  # type: ignore[arg-type]


# -- what a group is --------------------------------------------------------------------------------------------------


def a_group_is_described_from_its_rows_tags(w: World) -> None:
    """Keys sorted; oldest weight_version; earliest created_at; the size; the tags of the first key in order."""
    flow = w.flow()
    flow.put(
        ["g_1", "g_0"],
        [
            {"group_id": "g", "weight_version": 7, "created_at": 50.5, "committed": True, "num_keys": 2, "who": "one"},
            {"group_id": "g", "weight_version": "5", "created_at": "40", "committed": "yes", "who": "zero"},
        ],
        x=ints(1, 2),
    )
    (group,) = flow.client.list_metadata(flow.name)
    same((group.partition_id, group.group_id, group.keys), (flow.name, "g", ["g_0", "g_1"]), "names")
    same((group.weight_version, group.created_at), (5, 40.0), "version, created_at")
    same(
        (group.committed, group.expected_num_keys, group.is_complete), (True, 2, True), "committed, expected, complete"
    )
    same((group.tags["who"], group.tags["weight_version"]), ("zero", "5"), "tags of the first key")
    true(group.size_bytes >= 16, f"size_bytes of two int64: {group.size_bytes}")


def untagged_rows_are_groups_of_one(w: World) -> None:
    """A row without group_id is a group of one, not committed, complete, stamped by the plane."""
    flow = w.flow()
    before = time.time()
    flow.put(["solo"], x=ints(1))
    (group,) = flow.client.list_metadata(flow.name)
    same((group.group_id, group.keys, group.committed), ("solo", ["solo"], False), "group")
    same((group.weight_version, group.expected_num_keys, group.is_complete), (None, None, True), "what no tag says")
    true(group.created_at is not None, "created_at is not stamped")
    true(before - 60 <= (group.created_at or 0) <= time.time() + 60, f"created_at {group.created_at} is not about now")


def group_tags_are_parsed_leniently(w: World) -> None:
    """Numbers that do not parse are None; committed is said by True, 1, "1", "true" and "yes", by all rows."""
    flow = w.flow()
    said = {"a": True, "b": 1, "c": "1", "d": "TRUE", "e": "yes", "f": False, "g": 0, "h": "no", "i": None, "j": "ja"}
    flow.put(list(said), [{"committed": value} for value in said.values()], x=ints(*range(len(said))))
    flow.put(["k"], [{"weight_version": "new", "expected_num_keys": "many", "created_at": "then"}], x=ints(1))
    groups = {group.group_id: group for group in flow.client.list_metadata(flow.name)}
    same([g for g in said if groups[g].committed], ["a", "b", "c", "d", "e"], "committed")
    same((groups["k"].weight_version, groups["k"].expected_num_keys), (None, None), "numbers that do not parse")
    flow.put(["m0", "m1"], [{"group_id": "m", "committed": True}, {"group_id": "m"}], x=ints(1, 2))
    same("m" in _ids(flow, committed=True), False, "a group of which one row is not committed")


def the_group_size_is_a_default(w: World) -> None:
    """grpo_group_size is what rows with a group_id expect when they do not say; others expect nothing."""
    flow = w.flow(grpo_group_size=2)
    flow.put_group("short", 1)
    flow.put_group("full", 2)
    flow.put_group("three", 2, 3)
    flow.put(["solo"], [{"committed": True}], x=ints(1))
    groups = {group.group_id: group.is_complete for group in flow.client.list_metadata(flow.name)}
    same(groups, {"short": False, "full": True, "three": False, "solo": True}, "complete")
    same(flow.client.depth(flow.name), 2, "depth")
    flow.client.register_partition(flow.name, ["x"], 8, ["prep", "train"], grpo_group_size=1)
    same(flow.client.depth(flow.name), 2, "depth under a new default")


def depth_counts_committed_and_complete_groups(w: World) -> None:
    """Depth counts groups that are committed and complete, follows them, and is 0 for an unknown partition."""
    flow = w.flow()
    same(flow.client.depth(w.new_name()), 0, "depth of an unknown partition")
    flow.put_group("a", 2, 2)
    flow.put_group("b", 1, 2)
    flow.put_group("c", 2, 2, committed=False)
    same(flow.client.depth(flow.name), 1, "one of three")
    flow.client.put_samples(names("c_g", 2), flow.name, tags=[{"committed": True}] * 2)
    flow.put(["b_g1"], [{"group_id": "b", "committed": True, "expected_num_keys": 2}], x=ints(1))
    same(flow.client.depth(flow.name), 3, "all of three")
    flow.client.evict(names("a_g", 2), flow.name)
    same(flow.client.depth(flow.name), 2, "after an eviction")


# -- listing ----------------------------------------------------------------------------------------------------------


def listing_consumes_nothing(w: World) -> None:
    """list_metadata can be repeated, shows leased and uncommitted groups, and leaves cursors alone."""
    flow = w.flow()
    same(flow.client.list_metadata(w.new_name()), [], "groups of an unknown partition")
    flow.put_group("a", 2, 2)
    flow.put_group("b", 1, 2, committed=False)
    first = flow.client.list_metadata(flow.name)
    same(flow.client.list_metadata(flow.name), first, "a second listing")
    same(flow.claim().size, 3, "rows ready after listings")
    same(flow.client.list_metadata(flow.name), first, "a listing of leased groups")


def listings_are_filtered(w: World) -> None:
    """Filters by committed, weight_version and age keep exactly the groups that pass."""
    flow = w.flow()
    flow.put_group("v1", 1, weight_version=1, created_at=1000.0)
    flow.put_group("v2", 1, weight_version=2)
    flow.put_group("v3", 1, weight_version=3, committed=False)
    flow.put_group("none", 1)
    same(_ids(flow, committed=True), ["none", "v1", "v2"], "committed")
    same(_ids(flow, committed=False), ["v3"], "not committed")
    same(_ids(flow, min_weight_version=2), ["v2", "v3"], "at least version 2")
    same(_ids(flow, max_weight_version=2), ["v1", "v2"], "at most version 2")
    same(_ids(flow, min_weight_version=2, max_weight_version=2, committed=True), ["v2"], "all three")
    same(_ids(flow, older_than_s=3600.0), ["v1"], "older than an hour")


def listings_are_paged(w: World) -> None:
    """Groups come in order of id; pages of limit groups, each after the last of the one before, make the listing."""
    flow = w.flow()
    for group in ("d", "a", "e", "c", "b"):
        flow.put_group(group, 2)
    pages, after = [], None
    while page := _ids(flow, limit=2, after=after):
        pages.append(page)
        after = page[-1]
    same(pages, [["a", "b"], ["c", "d"], ["e"]], "pages")
    same(_ids(flow), ["a", "b", "c", "d", "e"], "the whole listing")
    for wrong in (0, -1, 1.5):
        with raises(DataPlaneBadRequest, ValueError):
            _ids(flow, limit=wrong)


def ready_for_leaves_out_what_a_task_has(w: World) -> None:
    """ready_for leaves out groups of which the task has leased or consumed a row, and refuses an unknown task."""
    w.needs("supports_leases")
    flow = w.flow()
    for group in "abc":
        flow.put_group(group, 2, 2)
    flow.client.ack(flow.claim("prep", keys=names("a_g", 2)))
    held = flow.claim("prep", keys=["b_g0"])
    same(_ids(flow, ready_for="prep"), ["c"], "groups ready for prep")
    same(_ids(flow, ready_for="train"), ["a", "b", "c"], "groups ready for train")
    flow.client.release(held)
    same(_ids(flow, ready_for="prep"), ["b", "c"], "groups ready after the release")
    with raises(DataPlaneBadRequest, KeyError, naming=["task", "mistyped"]):
        _ids(flow, ready_for="mistyped")


# -- whole groups -----------------------------------------------------------------------------------------------------


def whole_groups_are_committed_and_complete(w: World) -> None:
    """Whole-group claims hand out groups that are committed and complete, all rows of each, oldest first."""
    flow = w.flow()
    flow.put_group("short", 1, 2)
    flow.put_group("loose", 2, 2, committed=False)
    flow.put_group("good", 2, 2)
    flow.put_group("also", 3, 3)
    meta = flow.claim(batch=64, whole_groups=True)
    same(meta.sample_ids, [*names("good_g", 2), *names("also_g", 3)], "rows")
    same(flow.claim(batch=64, whole_groups=True).size, 0, "rows of the other groups")


def a_batch_ends_between_groups(w: World) -> None:
    """A whole-group claim never cuts a group at batch_size."""
    flow = w.flow()
    for group in "abc":
        flow.put_group(group, 2, 2)
    same(flow.claim(batch=3, whole_groups=True).sample_ids, names("a_g", 2), "the first claim")
    same(flow.claim(batch=5, whole_groups=True).sample_ids, [*names("b_g", 2), *names("c_g", 2)], "the second claim")


def a_group_larger_than_the_batch_is_a_bad_request(w: World) -> None:
    """A ready group that can never fit batch_size is a ValueError, not a wait."""
    flow = w.flow()
    flow.put_group("big", 3, 3)
    with raises(DataPlaneBadRequest, ValueError, naming=["big"]):
        flow.take(batch=2, whole_groups=True)
    same(flow.claim(batch=3, whole_groups=True).size, 3, "rows for a claim that is large enough")


def a_partly_claimed_group_is_not_whole(w: World) -> None:
    """A group of which the task holds a row already is not handed out as a whole."""
    w.needs("supports_leases")
    flow = w.flow()
    flow.put_group("a", 2, 2)
    held = flow.claim(keys=["a_g1"])
    same(flow.claim(whole_groups=True).size, 0, "rows while one is leased")
    flow.client.release(held)
    same(flow.claim(whole_groups=True).sample_ids, names("a_g", 2), "rows after its release")


def a_commit_by_tag_wakes_a_waiting_claim(w: World) -> None:
    """A tag-only put that commits a group wakes the claim that waits for it."""
    flow = w.flow()
    keys = flow.put_group("a", 2, 2, committed=False)
    got: list[str] = []
    together(
        lambda: got.extend(flow.take(whole_groups=True).sample_ids),
        later(lambda: flow.client.put_samples(keys, flow.name, tags=[{"committed": True}] * 2)),
    )
    same(got, keys, "rows of the claim that waited")


def a_wait_for_a_group_names_it(w: World) -> None:
    """A whole-group claim that waited in vain names the group that lags."""
    flow = w.flow()
    flow.put_group("laggard", 3, 4)
    with raises(DataPlaneTimeout, naming=["laggard"]):
        flow.take(whole_groups=True, timeout_s=0.1)


def an_overdue_group_goes_as_partial(w: World) -> None:
    """With the policy "partial" an incomplete group is handed out after its deadline, its rows tagged partial."""
    flow = w.flow(group_policy=GroupPolicy(on_deadline="partial", deadline_s=_BRIEF_S, min_ready=2))
    flow.put_group("most", 3, 4)
    flow.put_group("full", 2, 2)
    got = [flow.take(whole_groups=True, batch=4, timeout_s=SOON_S) for _ in range(2)]
    marks = {
        key: tag.get("partial", False)
        for meta in got
        for key, tag in zip(meta.sample_ids, meta.tags or [], strict=True)
    }
    same(
        marks, {**dict.fromkeys(names("most_g", 3), True), **dict.fromkeys(names("full_g", 2), False)}, "partial marks"
    )


def a_partial_group_is_chosen_by_its_usable_keys(w: World) -> None:
    """A listing says which rows of an overdue group may go, and a claim of groups by key tags them partial."""
    flow = w.flow(group_policy=GroupPolicy(on_deadline="partial", deadline_s=_BRIEF_S))
    flow.put_group("loose", 2, 4, committed=False)
    keys = flow.put_group("most", 1, 4)
    flow.put(["most_g1"], [{"group_id": "most", "expected_num_keys": 4, "committed": False}], x=ints(1))
    full = flow.put_group("full", 2, 2)
    usable: dict[str, list[str]] = {}
    deadline = time.monotonic() + SOON_S
    while not usable.get("most") and time.monotonic() < deadline:
        usable = {g.group_id: g.usable_keys for g in flow.client.list_metadata(flow.name, committed=True)}
    same(usable, {"most": keys, "full": full}, "usable keys")
    partial = {g.group_id: g.partial_keys for g in flow.client.list_metadata(flow.name)}
    same((partial["most"], partial["full"]), (keys, []), "partial keys")
    same(flow.client.depth(flow.name), 1, "depth")
    meta = flow.claim(keys=[*keys, *full], whole_groups=True)
    same([tag.get("partial", False) for tag in meta.tags or []], [True, False, False], "partial marks")


def an_overdue_group_is_dropped(w: World) -> None:
    """With the policy "drop", or "partial" and too few rows, an incomplete group is evicted after its deadline."""
    for policy in (
        GroupPolicy(on_deadline="drop", deadline_s=_BRIEF_S),
        GroupPolicy(on_deadline="partial", deadline_s=_BRIEF_S, min_ready=2),
    ):
        flow = w.flow(group_policy=policy)
        flow.put_group("lone", 1, 4)
        deadline = time.monotonic() + SOON_S
        while flow.keys() and time.monotonic() < deadline:
            flow.client.ping()
        same(flow.keys(), [], f"rows under {policy.on_deadline}")
        with raises(RowRemoved):
            flow.put(["lone_g1"], [{"group_id": "lone", "expected_num_keys": 4}], x=ints(1))


def an_evicted_unfinished_group_stays_closed(w: World) -> None:
    """After an incomplete group was evicted, its late rows are refused: half a group never comes back."""
    w.needs("supports_leases")
    flow = w.flow()
    flow.client.evict(flow.put_group("a", 2, 4), flow.name, "abandoned")
    with raises(RowRemoved, naming=["a_g2"]):
        flow.put(["a_g2"], [{"group_id": "a", "expected_num_keys": 4, "committed": True}], x=ints(1))
    same(flow.keys(), [], "rows")
