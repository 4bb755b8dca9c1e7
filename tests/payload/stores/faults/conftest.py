"""Beds for faults of a real Mooncake: one for those that leave it whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, TypeAlias

import pytest

from penstock.payload.stores.contract import BlockStore
from penstock.retry import NONE
from penstock.testing.store_faults import Bed, StoreFault
from tests.leaks import Watch

BedFor: TypeAlias = Callable[[StoreFault], Bed]


@pytest.fixture(scope="module")
def lines(no_leaks: Watch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """Two owners, each behind a proxy; every test mends what it breaks."""
    with Bed(tmp_path_factory.mktemp("lines")) as bed:
        yield bed


@pytest.fixture(scope="module")
def ours(lines: Bed) -> Iterator[BlockStore]:
    """A client on its own terms; closing one takes the library a second, so it is shared."""
    with lines.open() as store:
        yield store


@pytest.fixture(scope="module")
def none(lines: Bed) -> Iterator[BlockStore]:
    """One that does not retry."""
    with lines.open(NONE) as store:
        yield store


@pytest.fixture
def bed_for(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BedFor]:
    """A bed that may be broken for good."""
    with ExitStack() as stack:

        def make(fault: StoreFault, **options: Any) -> Bed:
            return stack.enter_context(Bed.of(fault, tmp_path_factory.mktemp("bed"), **options))

        yield make
