"""The resources of one endpoint: in order, of one kind, and gone when it is closed."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from penstock.endpoint.connection import Connection
from penstock.endpoint.events import Session
from penstock.endpoint.fitting import Fitting, common_kind
from penstock.errors import TransportError
from penstock.retry import Deadline

US, THEM = Session(1, 1), Session(2, 1)


class Fake:
    """Resources of one kind, and each resource of it; writes down what happens."""

    def __init__(self, name: str, log: list[str], *, fails: str = "", hangs: str = "") -> None:
        self.name, self.log, self.fails, self.hangs = name, log, fails, hangs
        self.params = name.encode()

    async def fresh(self, session: Session, deadline: Deadline) -> Fake:
        await self._do("fresh")
        return self

    async def bind(self, params: bytes, peer: Session, deadline: Deadline) -> None:
        await self._do(f"bind {params.decode()}")

    def connection(self) -> Connection:
        return cast("Connection", self)

    async def close(self) -> None:
        self.log.append(f"{self.name} close")

    async def _do(self, what: str) -> None:
        self.log.append(f"{self.name} {what}")
        await asyncio.sleep(100 if what.startswith(self.hangs or "!") else 0)
        if what.startswith(self.fails or "!"):
            raise TransportError(f"{what} failed", code="refused")


def fitting(log: list[str], told: list[str], *fakes: Fake) -> Fitting:
    return Fitting(US, {fake.name: fake for fake in fakes}, asyncio.Semaphore(1), told.append, asked=True)


def test_what_is_said_waits_for_what_is_done_before() -> None:
    """Made, told, bound, told: in the order of the machine's effects; of what is not chosen nothing stays."""

    async def run() -> None:
        log: list[str] = []
        fit = fitting(log, log, Fake("ucx", log), Fake("tcp", log))
        fit.then(lambda: log.append(f"say {list(fit.params())}"))
        fit.bind(THEM, {"tcp": b"there"})
        fit.then(lambda: log.append(f"say {list(fit.params())}"))
        await asyncio.sleep(0.01)
        made = ["ucx fresh", "tcp fresh", "say ['ucx', 'tcp']"]
        assert log == [*made, "ucx close", "tcp bind there", "say ['tcp']"]
        assert (fit.kind, fit.peer) == ("tcp", THEM)
        assert fit.connection()
        await fit.close()
        await fit.close()
        assert log.count("tcp close") == 1

    asyncio.run(run())


@pytest.mark.parametrize("fails", ["fresh", "bind"])
def test_a_failure_is_told_and_nothing_more_is_said(fails: str) -> None:
    """The machine hears why; what was made is closed with the endpoint."""

    async def run() -> None:
        log: list[str] = []
        told: list[str] = []
        fit = fitting(log, told, Fake("tcp", log, fails=fails))
        fit.bind(THEM, {"tcp": b"x"})
        fit.then(lambda: log.append("said"))
        await asyncio.sleep(0.01)
        assert told == [f"{fails} x failed" if fails == "bind" else "fresh failed"]
        assert "said" not in log
        await fit.close()
        assert ("tcp close" in log) == (fails == "bind")

    asyncio.run(run())


@pytest.mark.parametrize("hangs", ["fresh", "bind"])
def test_closing_ends_what_hangs(hangs: str) -> None:
    """And gives the turn back to others."""

    async def run() -> None:
        log: list[str] = []
        gate = asyncio.Semaphore(1)
        fit = Fitting(US, {"tcp": Fake("tcp", log, hangs=hangs)}, gate, log.append, asked=True)
        fit.bind(THEM, {"tcp": b"x"})
        await asyncio.sleep(0.01)
        assert gate.locked()
        await fit.close()
        assert not gate.locked()

    asyncio.run(run())


def test_both_peers_choose_the_same_kind() -> None:
    """Each on its own, whatever the orders are; and none in common is told."""
    kinds = ["ucx", "tcp", "memory"]
    orders = [["tcp", "ucx"], ["ucx", "tcp"], kinds, kinds[::-1], ["memory", "ucx"]]
    for ours in orders:
        for theirs in orders:
            if set(ours) & set(theirs):
                chosen = common_kind(dict.fromkeys(ours), dict.fromkeys(theirs))
                assert chosen == common_kind(dict.fromkeys(theirs), dict.fromkeys(ours))
    assert common_kind({"ucx": 1, "tcp": 2}, {"ucx": 1, "tcp": 2}) == "ucx"
    with pytest.raises(TransportError, match=r"no wire in common: here \['tcp'\], there \['ucx'\]"):
        common_kind({"tcp": 1}, {"ucx": 1})


def test_no_kind_in_common_breaks_the_endpoint() -> None:
    """And says what each side has."""

    async def run() -> None:
        log: list[str] = []
        told: list[str] = []
        fit = fitting(log, told, Fake("tcp", log))
        fit.bind(THEM, {"ucx": b"x"})
        await asyncio.sleep(0.01)
        assert told == ["no wire in common: here ['tcp'], there ['ucx']"]
        await fit.close()

    asyncio.run(run())
