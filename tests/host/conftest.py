"""What a test's agents left in shared memory goes with the test: lives of one agent share it until then."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from penstock.wire import paths
from tests.host.harness import SEGMENTS_OF


@pytest.fixture(autouse=True)
def _no_segments() -> Iterator[None]:
    yield
    for plane_id in SEGMENTS_OF:
        for path in paths.SHM_DIR.glob(f"penstock-{plane_id}-*"):
            path.unlink(missing_ok=True)
    SEGMENTS_OF.clear()
