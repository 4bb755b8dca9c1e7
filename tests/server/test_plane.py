"""A living plane: puts, claims and reads over frames, and what a restart keeps."""

from __future__ import annotations

from pathlib import Path

from penstock.requests import Done, Pop, Tokens
from tests.server.harness import PlaneProcess, RawClient


def test_a_row_is_put_read_claimed_and_popped(tmp_path: Path) -> None:
    """The way of a sample over raw frames, and the books balance after it."""
    with PlaneProcess(tmp_path / "d") as plane:
        assert plane.word == "ready"
        with RawClient(plane.data_dir) as client:
            client.open().register()
            client.put(["a", "b"], fill=9)
            assert client.read(["b", "a"]) == [9, 9]
            claimed = client.claim(2)
            assert claimed.keys == ["a", "b"]
            client.expect(Done, Pop("p", claimed.keys, Tokens([claimed.token], [])))
            report = client.audit()
            assert report.residue == 0
            assert report.partitions[0].trained == 2
        assert plane.end() == 0
