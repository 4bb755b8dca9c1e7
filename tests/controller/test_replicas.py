"""Replicas: who takes part, who is silent, which roles have nobody."""

from __future__ import annotations

from penstock.controller.replicas import Replicas


def test_a_replica_joins_once() -> None:
    """One that registers again is heard, and not new; under another role it is another one."""
    crew = Replicas(10.0)
    assert crew.join("a", "rollout", 0.0, beats=True)
    assert not crew.join("a", "rollout", 5.0, beats=True)
    assert crew.living["a"].heard_at == 5.0
    assert crew.join("a", "trainer", 6.0, beats=True)
    assert (crew.count("rollout"), crew.count("trainer")) == (0, 1)
    assert crew.vacant_since == {"rollout": 6.0}


def test_a_role_is_vacant_only_after_somebody_held_it() -> None:
    """And from the moment when the last one left, until the next one comes."""
    crew = Replicas(10.0)
    assert not crew.was_held("rollout")
    crew.join("a", "rollout", 0.0, beats=True)
    crew.join("b", "rollout", 0.0, beats=True)
    assert crew.was_held("rollout")
    crew.leave("a", 1.0)
    assert crew.vacant_since == {}
    gone = crew.leave("b", 2.0)
    assert gone is not None
    assert gone.name == "b"
    assert crew.vacant_since == {"rollout": 2.0}
    assert crew.was_held("rollout")
    assert not crew.was_held("trainer")
    crew.join("c", "rollout", 3.0, beats=True)
    assert crew.vacant_since == {}


def test_strangers_change_nothing() -> None:
    """Neither their heartbeat nor their leaving."""
    crew = Replicas(10.0)
    crew.hear("x", 1.0)
    assert crew.leave("x", 1.0) is None
    assert crew.living == {}
    assert crew.vacant_since == {}


def test_the_silent_are_found_after_their_time() -> None:
    """Not before, and not those who are watched by somebody else."""
    crew = Replicas(10.0)
    crew.join("a", "rollout", 0.0, beats=True)
    crew.join("watched", "rollout", 0.0, beats=False)
    crew.join("b", "rollout", 3.0, beats=True)
    assert crew.next_timer() == 10.0
    assert crew.silent(10.0) == []
    assert [one.name for one in crew.silent(10.1)] == ["a"]
    crew.hear("a", 10.1)
    assert crew.silent(13.0) == []
    assert [one.name for one in crew.silent(13.1)] == ["b"]
    assert Replicas(10.0).next_timer() is None


def test_who_was_stopped_buries_nobody() -> None:
    """The time in which we were stopped counts for nobody, nor for a role that is vacant."""
    crew = Replicas(10.0)
    crew.join("a", "rollout", 0.0, beats=True)
    crew.join("t", "trainer", 0.0, beats=True)
    crew.leave("t", 1.0)
    crew.shift(100.0)
    assert crew.silent(109.0) == []
    assert [one.name for one in crew.silent(110.5)] == ["a"]
    assert crew.vacant_since == {"trainer": 101.0}
