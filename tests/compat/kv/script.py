"""One script of key-value calls, for TransferQueue and Penstock alike, and what each call returned, as plain data.

``SAME``: calls whose results must be equal. ``OTHER``: calls that differ on purpose; the script says how on each side.
They run in order, on one plane: later ones see what earlier ones put.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from tensordict import NonTensorStack, TensorDict

Module: TypeAlias = Any  # transfer_queue, or its twin
Call: TypeAlias = Callable[[Module], Any]


class Differs(NamedTuple):
    """What a call gives there and here."""

    call: Call
    theirs: Any
    ours: Any


def batch(rows: int, **columns: Any) -> TensorDict:
    return TensorDict(columns, batch_size=[rows])


def jagged(*rows: torch.Tensor) -> torch.Tensor:
    return torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)


def samples() -> TensorDict:
    return batch(
        2,
        x=torch.arange(6).view(2, 3),
        m=torch.arange(24.0).view(2, 3, 4),
        s=torch.tensor([1.0, 2.0]),
        r=jagged(torch.arange(2), torch.arange(5)),
    )


def doubled(columns: dict[str, Any]) -> dict[str, Any]:
    columns["x"] = columns["x"] * 2
    columns["r"] = [row + 1 for row in columns["r"]]
    return columns


MIXED_TAG = {
    "list": [1, 2.5, "x"],
    "tuple": (1, 2),
    "dict": {"a": None, "b": {"c": b"\x00"}},
    "raw": b"\xff",
    "no": None,
}
GROUP_TAG = {"group_id": "g", "committed": False, "expected_num_keys": 8, "num_keys": 8, "weight_version": 3}

SAME: dict[str, Call] = {
    "one row": lambda tq: tq.kv_put("a", "t", {"x": torch.arange(3)}, {"s": 1}),
    "a further column": lambda tq: tq.kv_put("a", "t", {"y": torch.tensor(2.5)}, {"u": True, "f": 0.5}),
    "tags alone merge": lambda tq: tq.kv_put("a", "t", tag={"s": "new"}),
    "columns alone keep the tags": lambda tq: tq.kv_put("a", "t", {"x": torch.arange(4)}),
    "tags of all kinds": lambda tq: tq.kv_put("kinds", "t", {"x": torch.arange(4)}, MIXED_TAG) and None,
    "tags of all kinds, read": lambda tq: tq.kv_list("t")["t"]["kinds"],
    "tags that look like ours": lambda tq: tq.kv_put("ours", "t", tag={"tq:x": "tq:y", "z": "tq:"}),
    "tags of groups": lambda tq: tq.kv_put("group", "t", tag=GROUP_TAG),
    "a row of tags alone": lambda tq: tq.kv_put("bare", "t", tag={"q": 5}),
    "it has nothing to read": lambda tq: tq.kv_batch_get("bare", "t"),
    "nor with others": lambda tq: tq.kv_batch_get(["a", "bare"], "t"),
    "it gets columns later": lambda tq: tq.kv_put("bare", "t", {"x": torch.arange(2)}),
    "a row of nothing": lambda tq: tq.kv_put("empty", "t", {}),
    "the list": lambda tq: {name: list(rows.items()) for name, rows in tq.kv_list("t").items()},
    "all its columns": lambda tq: tq.kv_batch_get("a", "t"),
    "one column": lambda tq: tq.kv_batch_get("a", "t", "x"),
    "one column of several rows": lambda tq: tq.kv_batch_get(["bare", "a"], "t", ["x"]),
    "a row twice": lambda tq: tq.kv_batch_get(["a", "a"], "t", ["x"]),
    "columns that all have": lambda tq: tq.kv_batch_get(["a", "bare"], "t"),
    "nobody": lambda tq: tq.kv_batch_get(["nobody"], "t"),
    "nowhere": lambda tq: tq.kv_batch_get(["nobody"], "nowhere"),
    "the list of nowhere": lambda tq: tq.kv_list("nowhere"),
    "clear nobody": lambda tq: tq.kv_clear("nobody", "t"),
    "clear nowhere": lambda tq: tq.kv_clear(["nobody"], "nowhere"),
    "no keys": lambda tq: tq.kv_batch_get([], "t"),
    "keys as a tuple": lambda tq: tq.kv_batch_get(("a",), "t"),
    "keys that are no strings": lambda tq: tq.kv_batch_get([1], "t"),
    "clear no keys": lambda tq: tq.kv_clear([], "t"),
    "a batch": lambda tq: tq.kv_batch_put(["b0", "b1"], "u", samples(), [{"i": 0}, {"i": 1}]),
    "the batch, turned": lambda tq: tq.kv_batch_get(["b1", "b0"], "u"),
    "a column of one of them": lambda tq: tq.kv_batch_put(["b1"], "u", batch(1, z=torch.ones(1, 2))),
    "the columns of both": lambda tq: tq.kv_batch_get(["b0", "b1"], "u"),
    "tags of a batch": lambda tq: tq.kv_batch_put(["b1", "b0"], "u", tags=[{"j": 1}, {"i": 7}]),
    "a nested tensor of one row": lambda tq: tq.kv_batch_put(["b2"], "u", batch(1, r=jagged(torch.arange(3)))),
    "strings": lambda tq: tq.kv_put("s", "w", {"text": "hello", "l": [1, 2], "d": {"a": 1}, "no": None, "f": 1.5}),
    "more strings": lambda tq: tq.kv_batch_put(
        ["s2"], "w", batch(1, text=NonTensorStack("bye"), l=NonTensorStack([3]))
    ),
    "strings, read": lambda tq: tq.kv_batch_get(["s2", "s"], "w"),
    "strings, all": lambda tq: tq.kv_batch_get("s", "w"),
    "a TensorDict of one": lambda tq: tq.kv_put("one", "v", batch(1, x=torch.ones(1, 3))),
    "by meta": lambda tq: tq.kv_batch_get_by_meta(tq.kv_put("one", "v", tag={"a": 1})),
    "by meta, a column": lambda tq: tq.kv_batch_get_by_meta(tq.KVBatchMeta(["one"], [{}], "v", ["x", "y"]), "x"),
    "by meta, no such column": lambda tq: tq.kv_batch_get_by_meta(tq.KVBatchMeta(["one"], [{}], "v", ["x"]), "q"),
    "by meta of no partition": lambda tq: tq.kv_batch_get_by_meta(tq.KVBatchMeta(["one"], [{}])),
    "by meta of no columns": lambda tq: tq.kv_batch_get_by_meta(tq.KVBatchMeta(["one"], [{}], "v")),
    "a parser": lambda tq: tq.kv_batch_put(["p0", "p1"], "p", samples().select("x", "r"), data_parser=doubled),
    "what it made": lambda tq: tq.kv_batch_get(["p0", "p1"], "p"),
    "two ragged dimensions": lambda tq: tq.kv_batch_put(
        ["r0", "r1"], "r", batch(2, m=torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(4, 5)]))
    ),
    "two ragged dimensions, read": lambda tq: tq.kv_batch_get(["r0", "r1"], "r"),
    "the second one is ragged": lambda tq: tq.kv_batch_put(
        ["q0", "q1"], "q", batch(2, m=torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(2, 5)]))
    ),
    "the second one is ragged, read": lambda tq: tq.kv_batch_get(["q0", "q1"], "q"),
    "dtypes": lambda tq: tq.kv_put(
        "d", "d", {"b": torch.tensor([True]), "h": torch.ones(2, dtype=torch.bfloat16), "i": torch.arange(2).int()}
    ),
    "dtypes, read": lambda tq: tq.kv_batch_get("d", "d"),
    "nothing to put": lambda tq: tq.kv_put("a", "t"),
    "nothing to put of a batch": lambda tq: tq.kv_batch_put(["a"], "t"),
    "a batch of another size": lambda tq: tq.kv_batch_put(["b0"], "u", samples()),
    "clear": lambda tq: tq.kv_clear(["a", "kinds", "ours", "group", "bare", "empty"], "t"),
    "the empty list": lambda tq: tq.kv_list("t"),
    "cleared": lambda tq: tq.kv_batch_get("a", "t"),
    "put again": lambda tq: tq.kv_put("a", "t", {"x": torch.arange(3)}),
    "read again": lambda tq: tq.kv_batch_get("a", "t"),
    "all partitions": lambda tq: {name: list(rows) for name, rows in tq.kv_list().items()},
    "clear one": lambda tq: tq.kv_clear("b0", "u"),
    "the others stay": lambda tq: tq.kv_list("u"),
}

NO_ROWS: dict[str, Any] = {"rows": 0, "columns": {}}
OTHER: dict[str, Differs] = {
    "some rows are missing": Differs(
        lambda tq: tq.kv_batch_get(["a", "nobody"], "t", "x").batch_size[0], 1, {"raises": "NotFound"}
    ),
    "a column is missing": Differs(lambda tq: tq.kv_batch_get("a", "t", "zz"), NO_ROWS, {"raises": "FieldsNotReady"}),
    "a column is missing beside another": Differs(
        lambda tq: sorted(tq.kv_batch_get("a", "t", ["x", "zz"]).keys()), ["x"], {"raises": "FieldsNotReady"}
    ),
    "a column that some rows lack": Differs(
        lambda tq: tq.kv_batch_get(["b1", "b2"], "u", "z"), NO_ROWS, {"raises": "FieldsNotReady"}
    ),
    "a key twice": Differs(
        lambda tq: tq.kv_batch_put(["d", "d"], "e", batch(2, x=torch.ones(2, 3))),
        {"raises": "ValueError"},
        {"raises": "BadArgument"},
    ),
    "tags of another number": Differs(
        lambda tq: tq.kv_batch_put(["e"], "e", tags=[{}, {}]), {"raises": "ValueError"}, {"raises": "BadArgument"}
    ),
    "a TensorDict of no rows' dimension": Differs(
        lambda tq: tq.kv_put("f", "e", TensorDict({"x": torch.ones(3)}, batch_size=[])),
        {"raises": "IndexError"},
        {"raises": "BadArgument"},
    ),
    "refused puts leave nothing": Differs(lambda tq: tq.kv_list("e"), {"e": {"d": {}, "e": {}, "f": {}}}, {}),
    "a column of another dtype": Differs(
        lambda tq: tq.kv_put("a", "t", {"x": torch.arange(3).float()}).fields, ["x"], {"raises": "BadArgument"}
    ),
    "a tag whose name is no string": Differs(
        lambda tq: tq.kv_put("a", "t", tag={3: 4}).tags, [{3: 4}], {"raises": "BadArgument"}
    ),
    "a parser that returns nothing": Differs(
        lambda tq: tq.kv_batch_put(["p0", "p1"], "p", samples().select("x", "r"), data_parser=print),
        {"raises": "RuntimeError"},
        {"raises": "RefusedType"},
    ),
}


def run(tq: Module, calls: dict[str, Call]) -> dict[str, Any]:
    """Return what each call gave, as plain data."""
    return {name: outcome(tq, call) for name, call in calls.items()}


def outcome(tq: Module, call: Call) -> Any:
    try:
        return plain(call(tq))
    except Exception as error:  # what it raises is what is compared
        return {"raises": type(error).__name__, "bases": sorted(base.__name__ for base in type(error).__mro__)}


def plain(value: Any) -> Any:
    if isinstance(value, TensorDict):
        return {
            "rows": value.batch_size[0],
            "columns": {name: _column(value.get(name)) for name in sorted(value.keys())},
        }
    if type(value).__name__ == "KVBatchMeta":
        return {name: plain(getattr(value, name)) for name in ("keys", "tags", "partition_id", "fields", "extra_info")}
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _column(column: Any) -> Any:
    if not isinstance(column, torch.Tensor):
        return [plain(value) for value in column.tolist()]
    kind = str(column.layout) if column.is_nested else "dense"
    return [kind, str(column.dtype), [[list(row.shape), row.tolist()] for row in column.unbind()]]
