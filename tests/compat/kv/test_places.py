"""A plane on a Ray cluster that was started for this purpose alone, and its end; without Ray."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.compat.transfer_queue import places
from penstock.errors import DataPlaneUnavailable, UnknownName


class Held:
    """A plane: ``said`` is what became of it and of its client. ``away``: it does not answer; ``made``: by us."""

    def __init__(self, away: bool = False, made: bool = True) -> None:
        self.away, self.made = away, made
        self.said: list[str] = []

    def status(self) -> Any:
        if self.away:
            raise DataPlaneUnavailable("away")
        return SimpleNamespace(partitions=[SimpleNamespace(partition="p")])

    def clear_samples(self, keys: None, partition: str) -> None:
        self.said.append(f"cleared {partition}")

    def connect(self, **_options: Any) -> Any:
        raise DataPlaneUnavailable("no agent here")

    def close(self) -> None:
        self.said.append("closed")


def test_a_plane_of_this_purpose_ends_empty(tmp_path: Path) -> None:
    """Its rows are cleared, client and plane closed, and its directory is gone."""
    own, held = tmp_path / "own", Held()
    own.mkdir()
    places._end(held, held, str(own))  # type: ignore[arg-type]
    assert held.said == ["cleared p", "closed", "closed"]
    assert not own.exists()


def test_a_plane_that_does_not_answer_ends_all_the_same(tmp_path: Path) -> None:
    """What cannot be cleared is told; client, plane and directory end like any others."""
    own, held = tmp_path / "own", Held(away=True)
    own.mkdir()
    with pytest.raises(DataPlaneUnavailable, match="away"):
        places._end(held, held, str(own))  # type: ignore[arg-type]
    assert held.said == ["closed", "closed"]
    assert not own.exists()


def test_a_named_plane_keeps_its_rows() -> None:
    """One whose directory was chosen is closed, and nothing of it is cleared."""
    held = Held()
    places._end(held, held, None)  # type: ignore[arg-type]
    assert held.said == ["closed", "closed"]


@pytest.mark.parametrize(("made", "said"), [(True, ["closed"]), (False, [])])
def test_a_plane_that_was_started_and_cannot_be_reached_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: bool, said: list[str]
) -> None:
    """Nobody would have a handle of it; one that another process made at the same moment is that one's."""
    from penstock.launch import ray as launch

    held = Held(made=made)

    def unknown(*_arguments: Any, **_options: Any) -> None:
        raise UnknownName("there is none")

    monkeypatch.setattr(launch, "connect", unknown)
    monkeypatch.setattr(launch, "start", lambda *_arguments, **_options: held)
    with pytest.raises(DataPlaneUnavailable, match="no agent here"):
        places.open_plane({"plane": "ray", "data_dir": str(tmp_path)})
    assert held.said == said
