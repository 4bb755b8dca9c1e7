"""What the plane answers the controller, and how it fails, becomes one piece of news each."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from penstock import errors
from penstock.controller import effects as do
from penstock.controller import news as nw
from penstock.controller.calls import MAX_GROUPS_LISTED, MetadataCalls
from penstock.debts import AnyDebt, StuckGroup
from penstock.plane.aio import AsyncDataPlaneClient
from penstock.plane.contract import DataPlaneClient
from penstock.plane.noop import NoOpDataPlaneClient
from penstock.records import DataPlaneCapabilities, DataPlaneGroupMeta, KVBatchMeta
from penstock.requests import WhyReport
from tests.controller.toys import config

META = KVBatchMeta("train", "train", ["k"], fields=["x"], lease=("t",))
CALLS: list[do.PlaneCall] = [
    do.Register(),
    do.List(),
    do.Claim(("k",)),
    do.Release(META),
    do.Pop(("k",), ("t",)),
    do.Evict(("k",), "stale"),
]
METHODS = {
    do.Register: "register_partition",
    do.List: "list_metadata",
    do.Claim: "claim_meta",
    do.Release: "release",
    do.Pop: "pop",
    do.Evict: "evict",
}


class Plane:
    """A client whose every method is what the test says; the rest refuses."""

    def __init__(self, **methods: Any) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._methods = methods

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        async def call(*args: Any, **options: Any) -> Any:
            self.asked.append((name, options))
            answer = self._methods[name]
            if isinstance(answer, Exception):
                raise answer
            return answer(*args, **options) if callable(answer) else answer

        return call


def calls(plane: Plane, **changes: Any) -> MetadataCalls:
    return MetadataCalls(plane, config(**changes))  # type: ignore[arg-type]


def news(call: do.PlaneCall, error: Exception) -> nw.News:
    plane = Plane(**dict.fromkeys(METHODS.values(), error))
    return asyncio.run(calls(plane).carry_out(call))


@pytest.mark.parametrize("call", CALLS, ids=lambda call: type(call).__name__)
@pytest.mark.parametrize("kind", [errors.DataPlaneUnavailable, errors.DataPlaneTimeout, errors.DataPlaneClearError])
def test_a_call_whose_outcome_is_unknown_has_failed(call: do.PlaneCall, kind: type[errors.DataPlaneError]) -> None:
    """The machine recovers from it; the news names the call."""
    found = news(call, kind("gone"))
    assert isinstance(found, nw.CallFailed)
    assert found.why == f"{type(call).__name__.lower()}: gone"


@pytest.mark.parametrize("call", CALLS, ids=lambda call: type(call).__name__)
@pytest.mark.parametrize("kind", [errors.LeaseLost, errors.RowRemoved, errors.UnknownName])
def test_a_refusal_names_its_rows_where_rows_can_be_refused(
    call: do.PlaneCall, kind: type[errors.DataPlaneError]
) -> None:
    """Claims, pops and releases may be refused; of another call that would be a contradiction."""
    found = news(call, kind("no", keys=["k"]))
    if isinstance(call, do.Claim | do.Pop | do.Release):
        assert found == nw.Refused(["k"], "no")
    else:
        assert isinstance(found, nw.CallBroken)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: type(call).__name__)
def test_a_plane_that_does_not_know_the_partition_any_more_is_another_one(call: do.PlaneCall) -> None:
    """It was registered: a plane that came back empty took over between two calls, and is to be learned anew."""
    assert isinstance(news(call, errors.UnknownName("unknown partition 'train'")), nw.CallFailed)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: type(call).__name__)
def test_every_other_error_of_the_plane_breaks_the_run(call: do.PlaneCall) -> None:
    """Going on would be guessing; the news names the error."""
    found = news(call, errors.BadArgument("nonsense"))
    assert isinstance(found, nw.CallBroken)
    assert "BadArgument: nonsense" in found.why


def test_an_error_of_ours_is_not_hidden() -> None:
    """What is not the plane's is a bug, and goes to the top."""
    with pytest.raises(ZeroDivisionError):
        news(do.List(), ZeroDivisionError())


def test_each_call_ends_by_the_deadline_of_calls() -> None:
    """No call of the plane is made without ``timeout_s``."""
    plane = Plane(
        get_capabilities=DataPlaneCapabilities(),
        **{**dict.fromkeys(METHODS.values()), "list_metadata": [], "why": WhyReport("s", [], [])},
    )
    made = calls(plane, call_timeout_s=7.0)

    async def run() -> None:
        for call in CALLS:
            await made.carry_out(call)
        await made.why()

    asyncio.run(run())
    assert len(plane.asked) == len(CALLS) + 2
    assert {options["timeout_s"] for _, options in plane.asked} == {7.0}


def test_a_claim_takes_exactly_the_rows_of_groups_that_were_chosen() -> None:
    """By key, without waiting, as whole groups: rows of partial ones come with their tag."""
    plane = Plane(claim_meta=META)
    assert asyncio.run(calls(plane).carry_out(do.Claim(("k",)))) == nw.Leased(META)
    ((_, options),) = plane.asked
    assert (options["keys"], options["blocking"], options["whole_groups"]) == (("k",), False, True)


def test_a_pop_without_tokens_asks_for_none() -> None:
    """An adapter without leases is told of none."""
    plane = Plane(pop=None)
    assert asyncio.run(calls(plane).carry_out(do.Pop(("k",), ()))) == nw.RowsGone()
    assert plane.asked[0][1]["lease"] is None


# -- listing ----------------------------------------------------------------------------------------------------------


def test_a_listing_has_all_pages() -> None:
    """Each begins after the last group of the one before."""
    groups = [DataPlaneGroupMeta("train", f"run.{i:06}.0", [f"k{i}"]) for i in range(2 * MAX_GROUPS_LISTED + 3)]

    def page(_partition: str, *, limit: int, timeout_s: float, after: str = "") -> list[DataPlaneGroupMeta]:
        return [group for group in groups if group.group_id > after][:limit]

    plane = Plane(list_metadata=page, get_capabilities=DataPlaneCapabilities())
    assert asyncio.run(calls(plane).carry_out(do.List())) == nw.Listed(groups)
    assert [name for name, _ in plane.asked] == ["list_metadata"] * 3 + ["get_capabilities"]


def test_a_plane_that_was_restarted_between_two_calls_is_noticed() -> None:
    """Both calls succeeded: only its incarnation tells; once looked at, it is the plane."""
    lives = iter([5, 5, 6, 6, 6])
    plane = Plane(
        ping=None,
        list_metadata=[],
        get_capabilities=lambda **_: DataPlaneCapabilities(incarnation=next(lives)),
    )
    made = calls(plane)

    async def run() -> list[nw.News]:
        await made.look(1.0)
        first = await made.carry_out(do.List())
        second = await made.carry_out(do.List())
        await made.look(1.0)
        return [first, second, await made.carry_out(do.List())]

    first, second, third = asyncio.run(run())
    assert first == third == nw.Listed([])
    assert isinstance(second, nw.CallFailed)
    assert "5 -> 6" in second.why


def test_a_look_pings_first() -> None:
    """Capabilities may be remembered somewhere; the whole path must answer."""
    plane = Plane(ping=errors.DataPlaneUnavailable("away"), get_capabilities=DataPlaneCapabilities())
    with pytest.raises(errors.DataPlaneUnavailable):
        asyncio.run(calls(plane).look(1.0))
    assert [name for name, _ in plane.asked] == ["ping"]


# -- why --------------------------------------------------------------------------------------------------------------


def debt(says: str) -> AnyDebt:
    return StuckGroup(says=says, group="g", rows=1, expected=2, gone=0, committed=False, age_s=1.0, owed_by=[])


def test_why_tells_each_debt_once_in_the_planes_own_sentence() -> None:
    """The worst first; what it says of waits is the same in other words."""
    report = WhyReport(
        "s", ["waits: a is missing"], [], [debt("a is missing"), debt("b is late"), debt("a is missing")]
    )
    assert asyncio.run(calls(Plane(why=report)).why()) == ["a is missing", "b is late"]


@pytest.mark.parametrize(("tasks", "asked"), [((), "train"), (("judge", "train"), None)])
def test_why_asks_for_earlier_stages_too(tasks: tuple[str, ...], asked: str | None) -> None:
    """What the final task waits for may be owed to the stage before it."""
    plane = Plane(why=WhyReport("s", [], []))
    asyncio.run(calls(plane, tasks=tasks).why())
    assert plane.asked[0][1]["task"] == asked


def test_an_adapter_that_cannot_say_why_says_nothing() -> None:
    """And one that fails to is no reason to end the run."""
    assert asyncio.run(calls(Plane(why=errors.DataPlaneBadRequest("cannot"))).why()) == []
    (sentence,) = asyncio.run(calls(Plane(why=errors.DataPlaneTimeout("slow"))).why())
    assert "slow" in sentence


# -- metadata only ----------------------------------------------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[NoOpDataPlaneClient]:
    with NoOpDataPlaneClient() as plane:
        yield plane


def test_no_method_that_carries_columns_is_named_here() -> None:
    """The source itself: of the contract's methods these calls know those of metadata alone."""
    source = inspect.getsource(MetadataCalls)
    payload = {name for name in vars(DataPlaneClient) if name.startswith(("get_data", "get_samples", "put_"))}
    assert payload
    assert not [name for name in payload if name in source]


def test_close_ends_the_session(memory: NoOpDataPlaneClient) -> None:
    """Its leases are free at once."""

    async def run() -> None:
        made = MetadataCalls(AsyncDataPlaneClient(memory.peer()), config())
        await made.carry_out(do.Register())
        await made.close(1.0)
        assert isinstance(await made.carry_out(do.List()), nw.CallFailed)

    asyncio.run(run())
