"""Who a host is, life after life."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.errors import DataPlaneUnavailable
from penstock.host.identity import Home, begin_life
from penstock.wire.paths import host_file

URL = "penstock://plane:1"


def test_the_id_stays_and_the_life_grows_though_the_clock_goes_back(tmp_path: Path) -> None:
    """Restarts are told apart, and are the same host's."""
    lives = [begin_life(tmp_path, URL, clock_ns=clock) for clock in (1000, 2000, 500, 500)]
    assert len({life.host_id for life in lives}) == 1
    assert [life.life for life in lives] == [1000, 2000, 2001, 2002]
    assert 0 < lives[0].host_id < 1 << 62


def test_two_directories_are_two_hosts(tmp_path: Path) -> None:
    """The id is random."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert begin_life(tmp_path / "a", URL).host_id != begin_life(tmp_path / "b", URL).host_id


def test_a_damaged_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """Under a new id the rows that lie here would be nobody's: that is for a person to decide."""
    host_file(tmp_path).write_text('{"host_id": "x"')
    with pytest.raises(DataPlaneUnavailable, match=r"remove it to begin as a new one.*lose the rows"):
        begin_life(tmp_path, URL)


def test_whose_the_blocks_are_outlives_the_agent(tmp_path: Path) -> None:
    """The plane that took the host in is remembered by later lives, until another one does."""
    first = Home(tmp_path, begin_life(tmp_path, URL))
    assert first.plane == 0
    first.is_of(7)
    again = Home(tmp_path, begin_life(tmp_path, URL))
    assert (again.plane, again.identity.host_id) == (7, first.identity.host_id)
    again.is_of(0)
    assert Home(tmp_path, begin_life(tmp_path, URL)).plane == 0
