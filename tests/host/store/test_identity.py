"""Which host of its plane a store is, and in which life."""

from __future__ import annotations

from penstock.host.store.identity import life_number, store_id


def test_a_store_has_one_id_at_a_plane_however_it_is_used() -> None:
    """Its settings are each client's own; another plane, or another store, is another id."""
    mine = store_id(7, "mooncake://10.0.0.1:50051")
    assert mine == store_id(7, "mooncake://10.0.0.1:50051?replicas=2&metadata=http://x:1/metadata")
    assert 0 < mine < 1 << 62
    assert len({mine, store_id(8, "mooncake://10.0.0.1:50051"), store_id(7, "mooncake://10.0.0.2:50051")}) == 3


def test_a_life_keeps_its_number_as_long_as_it_has_its_name() -> None:
    """Whoever is the agent, and however often it begins; the next life has a greater one."""
    first = life_number(0, "a")
    assert first == life_number(first, "a")
    second = life_number(first, "b")
    third = life_number(second, "a")
    assert first < second < third
    assert third < 1 << 63
