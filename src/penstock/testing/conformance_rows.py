"""Rows by key: registration, puts, tags, reads, clears."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from penstock.errors import BadArgument, DataPlaneBadRequest, DataPlaneNotReady
from penstock.records import KVBatchMeta
from penstock.testing.conformance_world import TASKS, World, ints, names, raises, same, same_tensor, together, true


def registering_again_merges_fields_and_keeps_rows(w: World) -> None:
    """Registering a partition again, as callers do every step, keeps its rows and cursors."""
    flow = w.flow()
    flow.put_rows(2)
    flow.claim("prep", 1)
    for step in range(3):
        flow.client.register_partition(flow.name, [f"step{step}"], 100 + step, list(TASKS))
    same(flow.keys(), ["k0", "k1"], "rows")
    same(flow.claim("prep").sample_ids, ["k1"], "rows that prep has not claimed")


def registering_with_other_tasks_is_refused(w: World) -> None:
    """Different consumer tasks, or their order, or different enums are refused; the same again are not."""
    flow = w.flow(enums={"status": ["running", "finished"]})
    flow.client.register_partition(flow.name, ["x"], 8, list(TASKS), enums={"status": ["running", "finished"]})
    for tasks in (["train"], ["prep", "train", "more"], ["train", "prep"]):
        with raises(DataPlaneBadRequest, ValueError):
            flow.client.register_partition(flow.name, ["x"], 8, tasks, enums={"status": ["running", "finished"]})
    with raises(DataPlaneBadRequest, ValueError):
        flow.client.register_partition(flow.name, ["x"], 8, list(TASKS), enums={"status": ["other"]})


def registration_arguments_are_checked(w: World) -> None:
    """A registration with an empty name, no task, a string for a list or a negative size is a ValueError."""
    client, name = w.client, w.new_name()
    for arguments in (
        ("", ["x"], 8, ["t"]),
        (None, ["x"], 8, ["t"]),
        (name, "x", 8, ["t"]),
        (name, ["x"], -1, ["t"]),
        (name, ["x"], 8, []),
        (name, ["x"], 8, ["t", "t"]),
        (name, ["x"], 8, "t"),
        (name, [""], 8, ["t"]),
        (name, ["x"], 8, ["t"], 0),
    ):
        with raises(DataPlaneBadRequest, ValueError):
            client.register_partition(*arguments)
    same(client.list_metadata(name), [], "groups of what was never registered")


def what_was_put_is_read(w: World) -> None:
    """A get returns the columns that were put: (N,) stays (N,), values and dtype equal."""
    flow = w.flow()
    flow.put(names("k", 4), x=torch.arange(4), y=torch.arange(8.0).reshape(4, 2))
    got = flow.get(names("k", 4), "x", "y")
    same(tuple(got.batch_size), (4,), "batch size")
    same(sorted(got.keys()), ["x", "y"], "columns")
    same_tensor(got["x"], torch.arange(4))
    same_tensor(got["y"], torch.arange(8.0).reshape(4, 2))


def a_put_returns_the_meta_of_its_rows(w: World) -> None:
    """The meta of a put names its rows, the columns it wrote and the tags; no task, no lease."""
    flow = w.flow()
    meta = flow.put(["a", "b"], [{"t": 1}, {"t": 2}], x=ints(1, 2))
    same((meta.partition_id, meta.task_name, meta.sample_ids), (flow.name, None, ["a", "b"]), "meta")
    same((meta.fields, meta.tags, meta.lease), (["x"], [{"t": 1}, {"t": 2}], None), "fields, tags, lease")


def undeclared_fields_are_accepted(w: World) -> None:
    """A column that no registration declared is stored and claimable like any other."""
    flow = w.flow()
    flow.put(["a"], x=ints(1), surprise=ints(2))
    same(flow.get(["a"], "surprise")["surprise"].tolist(), [2], "undeclared column")
    same(flow.claim(required=["surprise"]).sample_ids, ["a"], "rows that have it")


def a_later_stage_adds_columns(w: World) -> None:
    """A second put of other columns under the same keys extends the rows, for some of them or for all."""
    flow = w.flow()
    flow.put_rows(3)
    flow.put(["k2", "k0"], y=torch.tensor([2.0, 0.0]))
    same_tensor(flow.get(["k0", "k2"], "y")["y"], torch.tensor([0.0, 2.0]))
    same(flow.keys(), ["k0", "k1", "k2"], "rows")
    with raises(DataPlaneNotReady, KeyError):
        flow.get(["k1"], "y")


def writing_a_field_again_replaces_it(w: World) -> None:
    """A field that is put again takes the new value; other fields and other rows keep theirs."""
    flow = w.flow()
    flow.put(["a", "b"], x=ints(1, 2), y=torch.ones(2))
    flow.put(["b"], x=ints(20))
    same(flow.x(["a", "b"]), [1, 20], "x")
    same_tensor(flow.get(["a", "b"], "y")["y"], torch.ones(2))


def rows_come_in_the_order_asked_for(w: World) -> None:
    """A get returns rows in the order asked for, however they were put; a key may be repeated."""
    flow = w.flow()
    flow.put(["a", "b"], x=ints(1, 2))
    flow.put(["c"], x=ints(3))
    same(flow.x(["c", "a", "b", "a", "c", "c"]), [3, 1, 2, 1, 3, 3], "rows")


def no_rows_give_batch_size_zero(w: World) -> None:
    """A get of no rows has batch size 0 and the column's dtype; a put of no rows makes none."""
    flow = w.flow()
    flow.put_rows(1)
    got = flow.get([], "x")
    same((tuple(got.batch_size), len(got["x"]), got["x"].dtype), ((0,), 0, torch.int64), "batch of no rows")
    flow.put([], x=torch.zeros(0, dtype=torch.int64))
    same(flow.keys(), ["k0"], "rows after a put of none")
    empty = KVBatchMeta(flow.name, None, [], fields=["x"])
    same(tuple(flow.client.get_data(empty).batch_size), (0,), "batch of an empty meta")


def missing_rows_are_named(w: World) -> None:
    """A get of rows that are not there is a bad request and a KeyError whose ``keys`` names all of them."""
    flow = w.flow()
    with raises(DataPlaneBadRequest, KeyError, naming=["ghost", "rows"]) as caught:
        flow.get(["ghost", "spirit"])
    same(sorted(caught.error.keys), ["ghost", "spirit"], "keys")


def an_unproduced_field_is_not_ready(w: World) -> None:
    """A field that rows lack is both DataPlaneNotReady and KeyError and is named, never an empty batch."""
    flow = w.flow()
    flow.put_rows(2)
    with raises(DataPlaneNotReady, KeyError, naming=["y"]):
        flow.get(["k0"], "x", "y")
    with raises(KeyError):
        flow.get(["k0"], "never_heard_of")


def an_unknown_partition_is_named(w: World) -> None:
    """Reads, puts and claims of an unknown partition are KeyErrors that name it."""
    client, name = w.client, w.new_name()
    for call in (
        lambda: client.get_samples(["a"], name, ["x"]),
        lambda: client.put_samples(["a"], name, {"x": ints(1)}),
        lambda: client.claim_meta(name, "train", ["x"], 1, blocking=False),
        lambda: client.claim_meta(name, "train", ["x"], 1, timeout_s=5.0),
        lambda: client.check_consumption_status(name, ["train"]),
    ):
        with raises(DataPlaneBadRequest, KeyError, naming=["partition", name]):
            call()


def dropping_leaves_out_what_cannot_be_read(w: World) -> None:
    """on_failed="drop" leaves out missing rows and rows that lack a field, and names the rest in a meta."""
    flow = w.flow()
    flow.put_rows(3)
    flow.put(["k0", "k2"], y=torch.tensor([0.5, 2.5]))
    got, kept = flow.client.get_samples(["k2", "k1", "gone", "k0"], flow.name, ["x", "y"], on_failed="drop")
    same(kept.sample_ids, ["k2", "k0"], "rows")
    same((kept.partition_id, kept.size, tuple(got.batch_size)), (flow.name, 2, (2,)), "meta")
    same_tensor(got["y"], torch.tensor([2.5, 0.5]))
    got, kept = flow.client.get_samples(["gone"], flow.name, ["x"], on_failed="drop")
    same((tuple(got.batch_size), kept.size), ((0,), 0), "nothing readable")


def get_data_drops_from_its_meta(w: World) -> None:
    """get_data(on_failed="drop") returns the meta's own subset: task, tags and lease are kept."""
    flow = w.flow()
    flow.put(["a", "b"], [{"t": 1}, {"t": 2}], x=ints(1, 2))
    meta = flow.claim("prep")
    flow.client.clear_samples(["a"], flow.name)
    got, kept = flow.client.get_data(meta, on_failed="drop")
    same(got["x"].tolist(), [2], "rows")
    same((kept.sample_ids, kept.task_name, kept.lease), (["b"], "prep", meta.lease), "meta")
    same(None if kept.tags is None else [tag["t"] for tag in kept.tags], [2], "tags")


def on_failed_is_checked(w: World) -> None:
    """on_failed is "raise" or "drop"; anything else is a ValueError."""
    flow = w.flow()
    flow.put_rows(1)
    with raises(BadArgument, ValueError):
        flow.client.get_samples(["k0"], flow.name, ["x"], on_failed="ignore")  # type: ignore[call-overload]


def get_data_never_means_all_fields(w: World) -> None:
    """get_data reads select_fields, else meta.fields; with neither it is a ValueError."""
    flow = w.flow()
    flow.put(["a"], x=ints(1), y=torch.ones(1))
    same(list(flow.client.get_data(KVBatchMeta(flow.name, None, ["a"], fields=["y"])).keys()), ["y"], "meta.fields")
    chosen = flow.client.get_data(KVBatchMeta(flow.name, None, ["a"], fields=["y"]), select_fields=["x"])
    same(list(chosen.keys()), ["x"], "select_fields")
    with raises(DataPlaneBadRequest, ValueError):
        flow.client.get_data(KVBatchMeta(flow.name, None, ["a"], fields=None))
    with raises(DataPlaneBadRequest, ValueError):
        flow.client.get_samples(["a"], flow.name, [])


def put_arguments_are_checked(w: World) -> None:
    """Duplicate keys, misaligned columns or tags, neither of them, and odd keys are ValueErrors; nothing is put."""
    flow = w.flow()
    two = {"x": ints(1, 2)}
    for keys, fields, tags in (
        (["a", "a"], two, None),
        (["a"], two, None),
        (["a", "b"], {"x": ints(1, 2), "y": torch.ones(3)}, None),
        (["a", "b"], two, [{}]),
        (["a", "b"], two, {"t": 1}),
        (["a", "b"], two, [1, 2]),
        (["a", "b"], two, [{"": 1}, {}]),
        (["a", "b"], None, None),
        (["a", ""], two, None),
        (["a", 1], two, None),
        ("ab", two, None),
        (None, two, None),
    ):
        with raises(DataPlaneBadRequest, ValueError):
            flow.client.put_samples(keys, flow.name, fields, tags)  # type: ignore[arg-type]
    same(flow.keys(), [], "rows after refused puts")


def tags_merge(w: World) -> None:
    """Tags of a later put join and replace those that are there; None is a value."""
    flow = w.flow()
    flow.put(["a"], [{"one": 1, "two": "x", "three": 3.5}], x=ints(1))
    flow.put(["a"], [{"two": "y", "four": True, "one": None}])
    tags = flow.tags("a")
    same({n: tags.get(n, "absent") for n in ("one", "two", "three", "four")},
         {"one": None, "two": "y", "three": 3.5, "four": True}, "merged tags")  # fmt: skip
    same(type(tags["four"]), bool, "the type of True")


def tags_of_one_row_leave_its_neighbours_alone(w: World) -> None:
    """A put whose rows carry different tags changes of each row the tags it names for that row, and no others."""
    flow = w.flow()
    flow.put(["a"], [{"committed": False, "t": 1}], x=ints(1))
    flow.put(["a"], [{"u": 2}], x=ints(2))
    flow.put(["b", "a"], [{"committed": True, "t": 9}, {"v": 3}], x=ints(3, 4))
    same(flow.tags("a"), {"committed": False, "t": 1, "u": 2, "v": 3}, "tags of a")
    same(flow.tags("b"), {"committed": True, "t": 9}, "tags of b")


def tags_take_0d_scalars(w: World) -> None:
    """0-d numpy and torch scalars in tags become plain numbers; ints keep 64 bits."""
    flow = w.flow()
    tag = {
        "np": np.int32(3),
        "npf": np.float64(0.5),
        "npb": np.bool_(True),
        "array": np.array(7),
        "torch": torch.tensor(4),
        "low": -(2**63),
        "high": 2**63 - 1,
        "text": "žluťoučký",
    }
    flow.put(["a"], [tag], x=ints(1))
    tags = flow.tags("a")
    want = {"np": 3, "npf": 0.5, "npb": True, "array": 7, "torch": 4, "low": -(2**63), "high": 2**63 - 1}
    same({n: (type(tags[n]), tags[n]) for n in want}, {n: (type(v), v) for n, v in want.items()}, "tags")
    same(tags["text"], "žluťoučký", "text")


def tags_are_primitives(w: World) -> None:
    """A tag that is no str, int, float, bool or None is a TypeError that names tag and type."""
    flow = w.flow()
    for value, kind in (([1], "list"), ({"a": 1}, "dict"), (torch.ones(2), "Tensor"), (1j, "complex"), (2**70, "int")):
        with raises(DataPlaneBadRequest, TypeError, naming=["bad_tag", kind]):
            flow.put(["a"], [{"bad_tag": value}], x=ints(1))
    same(flow.keys(), [], "rows after refused puts")


def a_tag_only_put_needs_its_rows(w: World) -> None:
    """A put of tags alone changes rows that are there, and is a KeyError, whole, when one is not."""
    flow = w.flow()
    flow.put(["a"], [{"t": 0}], x=ints(1))
    flow.client.put_samples(["a"], flow.name, tags=[{"t": 1}])
    same(flow.tags("a")["t"], 1, "tag")
    with raises(DataPlaneBadRequest, KeyError, naming=["nowhere"]):
        flow.client.put_samples(["a", "nowhere"], flow.name, tags=[{"t": 2}, {"t": 2}])
    same((flow.tags("a")["t"], flow.keys()), (1, ["a"]), "tag and rows after the refused put")


def stored_rows_are_the_planes_own(w: World) -> None:
    """Writing to a tensor after its put, or to one that was read, changes nothing that is stored."""
    flow = w.flow()
    mine = torch.arange(4)
    flow.put(names("k", 4), x=mine)
    mine.fill_(-1)
    got = flow.get(names("k", 4))["x"]
    got.fill_(-2)
    same(flow.x(names("k", 4)), [0, 1, 2, 3], "stored rows")


def clearing_removes_rows(w: World) -> None:
    """A clear removes exactly its rows; absent rows are no error; later puts under these keys make new rows."""
    flow = w.flow()
    flow.put_rows(3)
    flow.client.clear_samples(["k1", "absent"], flow.name)
    same(flow.keys(), ["k0", "k2"], "rows")
    with raises(KeyError):
        flow.get(["k1"])
    flow.client.clear_samples(["k1"], flow.name)
    flow.put(["k1"], x=ints(11))
    same(flow.x(["k0", "k1"]), [0, 11], "rows after a new put")
    with raises(DataPlaneNotReady, KeyError):
        flow.get(["k1"], "y")


def clearing_all_removes_the_registration(w: World) -> None:
    """clear_samples(None) removes every row and the registration; it can be repeated, and the name used anew."""
    flow = w.flow()
    flow.put_rows(3)
    flow.claim()
    flow.client.clear_samples(None, flow.name)
    with raises(KeyError):
        flow.get(["k0"])
    same((flow.keys(), flow.client.depth(flow.name)), ([], 0), "rows, depth")
    flow.client.clear_samples(None, flow.name)
    flow.client.register_partition(flow.name, ["z"], 1, ["only"])
    flow.put(["k0"], x=torch.ones(1, dtype=torch.float16))
    same(flow.claim("only").sample_ids, ["k0"], "rows of the new registration")


def many_rows_pass(w: World) -> None:
    """A few thousand rows of several put sizes are read back whole, in any order."""
    flow = w.flow()
    keys = names("k", 3000)
    for start in (0, 1, 500, 1500):
        stop = {0: 1, 1: 500, 500: 1500, 1500: 3000}[start]
        flow.put(keys[start:stop], x=torch.arange(start, stop))
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(7)).tolist()
    same(flow.x([keys[i] for i in order]), order, "rows")


def other_clients_see_the_rows(w: World) -> None:
    """What one client put another reads and claims, at once."""
    flow = w.flow()
    theirs = flow.seen_by(w.other())
    flow.put(["a"], [{"t": 1}], x=ints(5))
    same((theirs.x(["a"]), theirs.tags("a")["t"]), ([5], 1), "row as the other sees it")
    same(theirs.claim().sample_ids, ["a"], "the other's claim")
    same(flow.claim().size, 0, "ready after it")


def one_client_serves_many_threads(w: World) -> None:
    """Threads that share a client put and read their own rows without disturbing each other."""
    flow = w.flow()

    def work(mine: str) -> None:
        for i in range(10):
            keys = names(f"{mine}-{i}-", 4)
            flow.put(keys, x=torch.arange(4) + i)
            same(flow.x(keys), [i, i + 1, i + 2, i + 3], f"rows of thread {mine}")

    together(*(partial(work, mine) for mine in "abcd"))
    true(len(flow.keys()) == 160, f"{len(flow.keys())} of 160 rows are listed")
