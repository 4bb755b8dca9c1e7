"""What a batch knows of one block: where it has been asked for, with what answer, and what its failure is called.

Invariant: a place that was ruled out stays so for the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from penstock.errors import (
    CorruptPayload,
    DataPlaneError,
    DataPlaneReadError,
    DataPlaneTimeout,
    StaleSlotError,
    TransportError,
)
from penstock.parts import HostPlace
from penstock.retry import Deadline
from penstock.transport.wanted import Wanted

__all__ = ["Story"]


@dataclass(slots=True, eq=False)
class Story:
    """One block of one batch."""

    wanted: Wanted
    reads: int = 0
    last: DataPlaneError | None = None
    ruled_out: dict[int, DataPlaneError] = field(default_factory=dict)  # place -> why it is not asked again

    @property
    def key(self) -> str:
        """Its name in the retry machine."""
        return str(self.wanted.block_id)

    def places(self) -> dict[str, int]:
        """The places that may still be asked, by the name of their host's life, preferred first."""
        found: dict[str, int] = {}
        for at, (host, _) in enumerate(self.wanted.places):
            if at not in self.ruled_out:
                found.setdefault(_name(host), at)
        return found

    def note(self, failure: DataPlaneError) -> None:
        """A read has failed. Its words are kept, and not the frames it went through: those have the block's memory."""
        failure.__traceback__ = failure.__cause__ = failure.__context__ = None
        self.last = failure

    def damaged(self) -> tuple[int, ...]:
        """The hosts that were ruled out for damage."""
        found = [at for at, failure in self.ruled_out.items() if isinstance(failure, CorruptPayload)]
        return tuple(self.wanted.places[at][0].host_id for at in found)

    def rule_out(self, place: int, failure: DataPlaneError | None = None) -> None:
        """Do not ask ``place`` again; because of ``failure``, or of the last one."""
        self.last = failure or self.last
        assert self.last is not None, "ruled out without a failure"
        self.ruled_out[place] = self.last

    def verdict(self, deadline: Deadline) -> DataPlaneError:
        """Return the error that the caller gets: what no time could mend first."""
        error = self._lost() or (self._late(deadline) if deadline.expired() else self._unreachable())
        error.attempts, error.elapsed_s = self.reads, deadline.elapsed()
        return error

    def _late(self, deadline: Deadline) -> DataPlaneError:
        last = f"the last one: {self.last}" if self.last else "none had failed"
        words = f"{self!r} has not arrived within {deadline.timeout_s:g} s and {self.reads} reads; {last}"
        return DataPlaneTimeout(words, missing=[repr(self)])

    def _lost(self) -> DataPlaneError | None:
        """No place is left: name the worst that was found, and all that was said."""
        if self.places() or not self.ruled_out:
            return None
        found = list(self.ruled_out.values())
        worst = next((e for cls in _WORST_FIRST for e in found if isinstance(e, cls)), found[0])
        words = f"{self!r} cannot be read: " + "; ".join(dict.fromkeys(map(str, found)))
        if isinstance(worst, TransportError):
            return TransportError(words, code=worst.code)
        return next((cls(words) for cls in _WORST_FIRST if isinstance(worst, cls)), DataPlaneReadError(words))

    def _unreachable(self) -> DataPlaneError:
        code = self.last.code if isinstance(self.last, TransportError) else "unavailable"
        last = f"the last one: {self.last}" if self.last else "it is said to lie nowhere"
        return TransportError(f"{self!r} was not got by {self.reads} reads; {last}", code=code)

    def __repr__(self) -> str:
        hosts = " and ".join(host.name or host.address for host, _ in self.wanted.places)
        return f"block {self.wanted.block_id} of host {hosts or 'nobody'}"


_WORST_FIRST: tuple[type[DataPlaneError], ...] = (CorruptPayload, StaleSlotError)


def _name(host: HostPlace) -> str:
    return f"{host.host_id:x}#{host.life}"
