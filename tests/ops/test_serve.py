"""Options of a served plane."""

from __future__ import annotations

import pytest

from penstock.errors import BadArgument
from penstock.ops.serve import plane_config


def test_assignments_become_options() -> None:
    """Numbers, exponents and null are read as such; the durability is its own option."""
    config = plane_config("memory", ["max_bytes=1e9", "linger_s=2", "partition_max_rows=null"])
    assert (config.durability, config.max_bytes, config.linger_s) == ("memory", 10**9, 2.0)
    assert config.partition_max_rows is None


@pytest.mark.parametrize("assignment", ["max_bytes", "max_byte=1", "max_bytes=many", "max_bytes=-1", "heartbeat_s=99"])
def test_bad_assignment_is_the_users_mistake(assignment: str) -> None:
    """A malformed, unknown, mistyped or senseless option is refused by name."""
    with pytest.raises(BadArgument, match=assignment.partition("=")[0]):
        plane_config("process", [assignment])


def test_unknown_durability_is_refused() -> None:
    """Only the levels there are."""
    with pytest.raises(BadArgument, match="durability"):
        plane_config("disk", [])
