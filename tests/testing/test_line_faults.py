"""The pure part of the proxy: what becomes of bytes under a sentence, however they arrive."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import BadArgument
from penstock.testing import line_faults as lines
from penstock.testing.line_faults import Action, End, LineFault, Pass, Stream, Wait

DATA = bytes(range(100))


def run(faults: Sequence[LineFault], pieces: Sequence[bytes]) -> tuple[list[Action], Stream]:
    """Feed ``pieces``; neighbouring bytes are joined, unless they were sliced."""
    stream = Stream(faults)
    actions = list(stream.begin())
    for piece in pieces:
        actions += stream.feed(piece)
    return actions, stream


def joined(actions: Sequence[Action]) -> list[Action]:
    merged: list[Action] = []
    for action in actions:
        if isinstance(action, Pass) and merged and isinstance(merged[-1], Pass):
            merged[-1] = Pass(merged[-1].data + action.data)
        else:
            merged.append(action)
    return [action for action in merged if action != Pass(b"")]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (lines.truncate(at=10, toward="client"), [Pass(DATA[:10]), End("close")]),
        (lines.reset(at=0, toward="client"), [End("reset")]),
        (lines.reset(at=100, toward="client"), [Pass(DATA), End("reset")]),
        (lines.half_close(at=99, toward="client"), [Pass(DATA[:99]), End("half_close")]),
        (lines.stall(at=5, for_s=2.0, toward="client"), [Pass(DATA[:5]), Wait(2.0), Pass(DATA[5:])]),
        (lines.stall(at=5, toward="client"), [Pass(DATA[:5]), Wait(None), Pass(DATA[5:])]),
        (lines.duplicate(at=20, nbytes=5, toward="client"), [Pass(DATA[:20] + DATA[15:])]),
        (lines.flip(at=0, bit=7, toward="client"), [Pass(b"\x80" + DATA[1:])]),
        (lines.flip(at=99, bit=0, toward="client"), [Pass(DATA[:99] + b"\x62")]),
        (lines.blackhole(at=30, toward="client"), [Pass(DATA[:30])]),
    ],
)
def test_what_a_sentence_does(fault: LineFault, expected: list[Action]) -> None:
    """Each kind of fault changes just what it says, at just the byte that it names, and has then fired."""
    actions, stream = run([fault], [DATA])
    assert joined(actions) == expected
    assert stream.fired == [fault]


def test_slices_are_actions_of_their_own() -> None:
    """From byte ``at`` on, and no longer than it says, bytes are passed on one by one."""
    actions, _ = run([lines.slices(at=2, nbytes=3, toward="client")], [DATA[:8]])
    assert actions == [Pass(DATA[:2]), Pass(DATA[2:3]), Pass(DATA[3:4]), Pass(DATA[4:5]), Pass(DATA[5:8])]


def test_a_delay_is_before_each_piece() -> None:
    """What arrives later arrives later each time."""
    actions, _ = run([lines.delay(by_s=0.5, toward="client")], [b"ab", b"cd"])
    assert actions == [Wait(0.5), Pass(b"ab"), Wait(0.5), Pass(b"cd")]


def test_a_fault_beyond_the_last_byte_has_not_fired() -> None:
    """Nothing happened, and nothing is claimed."""
    faults = [
        lines.reset(at=101, toward="client"),
        lines.flip(at=100, toward="client"),
        lines.blackhole(at=100, toward="client"),
    ]
    actions, stream = run(faults, [DATA])
    assert joined(actions) == [Pass(DATA)]
    assert stream.fired == []
    assert not stream.silent


def test_after_an_end_nothing_passes() -> None:
    """The first end is the last word: no bytes, no other fault."""
    actions, stream = run([lines.reset(at=3, toward="client"), lines.truncate(at=4, toward="client")], [DATA])
    assert joined(actions) == [Pass(DATA[:3]), End("reset")]
    assert len(stream.fired) == 1
    assert stream.silent


FAULTS = st.one_of(
    st.builds(lines.truncate, at=st.integers(0, 40), toward=st.just("client")),
    st.builds(lines.reset, at=st.integers(0, 40), toward=st.just("client")),
    st.builds(lines.half_close, at=st.integers(0, 40), toward=st.just("client")),
    st.builds(lines.stall, at=st.integers(0, 40), toward=st.just("client")),
    st.builds(lines.duplicate, at=st.integers(5, 40), nbytes=st.integers(1, 5), toward=st.just("client")),
    st.builds(lines.flip, at=st.integers(0, 40), bit=st.integers(0, 7), toward=st.just("client")),
    st.builds(lines.blackhole, at=st.integers(0, 40), toward=st.just("client")),
    st.builds(lines.slices, at=st.integers(0, 40), nbytes=st.integers(1, 9), toward=st.just("client")),
)


@given(faults=st.lists(FAULTS, max_size=5), cuts=st.lists(st.integers(0, 60), max_size=8))
def test_how_bytes_arrive_changes_nothing(faults: list[LineFault], cuts: list[int]) -> None:
    """In one piece, byte by byte or cut anywhere: the same happens at the same bytes."""
    data = DATA[:60]
    edges = [0, *sorted(cuts), 60]
    pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
    whole, stream = run(faults, [data])
    for way in (pieces, [bytes([byte]) for byte in data]):
        actions, other = run(faults, way)
        assert joined(actions) == joined(whole)
        assert other.fired == stream.fired


@pytest.mark.parametrize(
    "build",
    [
        lambda: lines.reset(at=-1, toward="client"),
        lambda: lines.duplicate(at=3, nbytes=4, toward="client"),
        lambda: lines.flip(at=0, bit=8, toward="client"),
        lambda: lines.slices(size=0, toward="client"),
        lambda: lines.stall(at=0, for_s=-1, toward="client"),
    ],
)
def test_a_sentence_that_makes_no_sense_is_refused(build: object) -> None:
    """A wrong number is an error where it is written, not a fault that never fires."""
    assert callable(build)
    with pytest.raises(BadArgument):
        build()


def test_sentences_can_be_read() -> None:
    """They are told in a report as what they are."""
    assert (
        str(lines.stall(at=5, for_s=2, toward="client"))
        == "stall for 2 s toward the client at byte 5 of every connection"
    )
    assert str(lines.reset(at=0, toward="server", connection=3)) == "reset toward the server at byte 0 of connection 3"


def test_a_fault_may_be_added_between_two_bytes() -> None:
    """It counts from the byte at which it was added; what lasts, or needs a memory, has to be there before."""
    stream = Stream([])
    assert joined(list(stream.feed(DATA[:40]))) == [Pass(DATA[:40])]
    stream.add(lines.reset(at=5, toward="client"))
    assert joined(list(stream.feed(DATA[40:]))) == [Pass(DATA[40:45]), End("reset")]
    for fault in (lines.blackhole(toward="client"), lines.duplicate(at=5, nbytes=2, toward="client")):
        with pytest.raises(BadArgument, match="from the start"):
            Stream([]).add(fault)
