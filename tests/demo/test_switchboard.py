"""The switchboard: letters pass verbatim, and a controller always knows who is there."""

from __future__ import annotations

import msgspec
import pytest

from penstock.demo.messages import LAUNCHER, Hello, Here, Joined, Left, Letter, News, Note, Ready, Worked, letter
from penstock.demo.switchboard import Switchboard


class Exchange:
    """A switchboard, and what came out of it."""

    def __init__(self) -> None:
        self.told: list[tuple[str, bytes]] = []
        self.notes: list[tuple[str, Note]] = []
        self.board = Switchboard(
            lambda peer, line: self.told.append((peer, line)), lambda peer, note: self.notes.append((peer, note))
        )

    def ready(self, *peers: str) -> None:
        for peer in peers:
            self.board.heard(peer, letter(LAUNCHER, peer, Ready()))

    def news(self, controller: str) -> list[News]:
        letters = [msgspec.json.decode(line, type=Letter) for peer, line in self.told if peer == controller]
        assert all((one.to, one.sender) == (controller, LAUNCHER) for one in letters)
        return [msgspec.json.decode(one.body, type=News) for one in letters]


def test_what_is_addressed_to_a_peer_is_passed_on_as_it_is() -> None:
    """Byte for byte, both ways, read by nobody: even a body that makes no sense here."""
    exchange = Exchange()
    lines = [
        ("controller-0.1", "trainer-0.2", letter("trainer-0.2", "controller-0.1", Hello(), 7)),
        ("trainer-0.2", "controller-0.1", letter("controller-0.1", "trainer-0.2", Here(), 7)),
        ("trainer-0.2", "controller-0.1", b'{"to":"controller-0.1","sender":"trainer-0.2","body":[1, {}]}\n'),
    ]
    for sender, _, line in lines:
        exchange.board.heard(sender, line)
    assert exchange.told == [(to, line) for _, to, line in lines]


def test_a_note_to_the_launcher_stays_here() -> None:
    """It is handed up with its sender's name, and to nobody else."""
    exchange = Exchange()
    exchange.board.heard("worker-0.3", letter(LAUNCHER, "worker-0.3", Worked(1.5)))
    assert (exchange.notes, exchange.told) == ([("worker-0.3", Worked(1.5))], [])


def test_a_controller_hears_who_comes_and_who_goes() -> None:
    """In the order in which it happens; of those that never were ready it hears nothing."""
    exchange = Exchange()
    exchange.ready("controller-0.1", "worker-0.2", "trainer-0.3")
    exchange.board.left("worker-0.2")
    exchange.board.left("worker-1.4")
    assert exchange.news("controller-0.1") == [Joined("worker-0.2"), Joined("trainer-0.3"), Left("worker-0.2")]


def test_a_new_controller_hears_first_who_is_there() -> None:
    """Those that are ready now, not those that have gone; then it hears on, and its predecessor nothing more."""
    exchange = Exchange()
    exchange.ready("controller-0.1", "worker-0.2", "worker-1.3")
    exchange.board.left("controller-0.1")
    exchange.board.left("worker-0.2")
    exchange.ready("controller-0.4", "worker-0.5")
    assert exchange.news("controller-0.4") == [Joined("worker-1.3"), Joined("worker-0.5")]
    assert exchange.news("controller-0.1") == [Joined("worker-0.2"), Joined("worker-1.3")]


def test_an_old_controllers_end_that_is_heard_late_does_not_unseat_the_new_one() -> None:
    """A name is one life's."""
    exchange = Exchange()
    exchange.ready("controller-0.1", "controller-0.4")
    exchange.board.left("controller-0.1")
    exchange.ready("worker-0.5")
    assert exchange.news("controller-0.4") == [Joined("worker-0.5")]


@pytest.mark.parametrize("line", [b"{}\n", b"nonsense\n", b'{"to":"launcher","sender":"x","body":{"type":"Joined"}}\n'])
def test_what_is_no_letter_is_refused(line: bytes) -> None:
    """A peer that does not speak the language is a bug of ours: it does not go unheard."""
    with pytest.raises(msgspec.DecodeError):
        Exchange().board.heard("worker-0.1", line)
