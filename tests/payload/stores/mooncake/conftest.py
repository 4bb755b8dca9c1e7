"""A store on a fake Mooncake whose time passes when a retry waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.payload.stores.sites import FakeSite


@pytest.fixture
def site() -> Iterator[FakeSite]:
    with ExitStack() as stack:
        yield FakeSite(stack)
