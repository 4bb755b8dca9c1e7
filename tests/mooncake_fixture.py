"""A real Mooncake for tests: one for those that break nothing, and as many as wanted for those that do.

``mooncake`` is shared by the whole session: take keys of your own, kill nothing. ``mooncakes(**options)`` starts one
that may be broken; it ends with its test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, TypeAlias

import pytest

from penstock.testing.mooncake import MooncakeCluster
from tests.leaks import Watch

StartMooncake: TypeAlias = Callable[..., MooncakeCluster]
MIB = 1 << 20


@pytest.fixture(scope="session")
def mooncake(no_leaks: Watch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MooncakeCluster]:
    """Two segments of 256 MiB each. Depends on the leak check so that it is gone before that looks."""
    folder = tmp_path_factory.mktemp("mooncake")
    with MooncakeCluster(folder, owners=2, segment_bytes=256 * MIB) as cluster:
        yield cluster


@pytest.fixture
def mooncakes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartMooncake]:
    """Start a cluster: ``mooncakes(owners=2, client_ttl_s=2)``."""
    with ExitStack() as stack:

        def start(**options: Any) -> MooncakeCluster:
            return stack.enter_context(MooncakeCluster(tmp_path_factory.mktemp("mooncake"), **options))

        yield start
