"""Whether the twin is one: the same random calls on it and on the real Mooncake, answer for answer."""

from __future__ import annotations

from random import Random
from typing import Any

from penstock.testing.mooncake import MooncakeCluster
from tests.payload.stores.rigs import Board, RealRig, Rig
from tests.payload.stores.test_quirks import fake_rig

CALLS = 400
SIZES = [0, 1, 7, 64, 4096]
KEYS = 6


def answer(rig: Rig, client: Any, board: Board, prefix: str, seed: int) -> list[Any]:
    """Make the call of that number; return all that can be seen of it."""
    random = Random(seed)
    call = random.choice(["upsert", "upsert", "put", "get", "get", "exists", "describe", "remove", "remove by force"])
    keys = [f"{prefix}{random.randrange(KEYS)}" for _ in range(random.randint(1, 4))]
    sizes = [random.choice(SIZES) for _ in keys]
    pointers = [board.at(number) for number in range(len(keys))]
    board.memory[:] = seed % 251
    if call in {"upsert", "put"}:
        segment = random.choice([-1, 0, 1])
        config = rig.library.write_config(rig.owner(segment) if segment >= 0 else "")
        write = client.batch_upsert_from if call == "upsert" else client.batch_put_from
        keys = list(dict.fromkeys(keys))
        return [call, keys, write(keys, pointers[: len(keys)], sizes[: len(keys)], config)]
    if call == "get":
        codes = client.batch_get_into(keys, pointers, sizes)
        return [call, keys, sizes, codes, [board.read(number, 64) for number in range(len(keys))]]
    if call == "exists":
        return [call, keys, client.batch_is_exist(keys)]
    if call == "describe":
        found = client.batch_get_replica_desc(keys)
        return [call, keys, sorted((key, _lengths(replicas)) for key, replicas in found.items())]
    return [call, keys, client.batch_remove(keys, call == "remove by force")]


def _lengths(replicas: list[Any]) -> list[tuple[str, int]]:
    return [
        (replica.status.name, replica.get_memory_descriptor().buffer_descriptor.size)
        for replica in replicas
        if replica.is_memory_replica()
    ]


def test_the_twin_answers_as_the_real_one(mooncake: MooncakeCluster) -> None:
    """400 random calls, on the same six keys, with the same memory: every code, length and byte is the same."""
    fake, real = fake_rig(), RealRig(mooncake)
    try:
        sites = [(rig, rig.connect()) for rig in (fake, real)]
        boards = [rig.board(client, pieces=4) for rig, client in sites]
        for seed in range(CALLS):
            seen = [
                answer(rig, client, board, "twin/", seed) for (rig, client), board in zip(sites, boards, strict=True)
            ]
            assert seen[0] == seen[1], f"call {seed}: the twin says the first, the real one the second"
    finally:
        real.close()
