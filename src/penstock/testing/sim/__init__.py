"""The simulator: ledger, journal, couriers and network in seeded virtual time, with faults at every step.

``run`` for many worlds, ``run_world`` for one seed. Real are the ledger, the journal's code and the couriers; twins are
the disk, the arena, the network, the clock and the shells.
"""

from penstock.testing.sim.outcome import Outcome
from penstock.testing.sim.report import SimReport, run
from penstock.testing.sim.stage import run_world

__all__ = ["Outcome", "SimReport", "run", "run_world"]
