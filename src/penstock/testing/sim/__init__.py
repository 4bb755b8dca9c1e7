"""The simulator: real machines and journals in seeded virtual time, with faults at every step.

Two kinds of worlds: ``run`` plays many in which clients use a plane (``run_world`` one seed; in every fourth they run
on machines with agents), ``run_controller`` many in which a controller steers a whole run over one
(``steering.run_world``). Real are the ledger, the journal's code, the couriers, the keepers of hosts' memory, and the
controller's machine; twins are the disk, the arenas, the network, the clock and the shells.
"""

from penstock.testing.sim.outcome import Outcome
from penstock.testing.sim.report import Kind, SimReport, run, run_controller
from penstock.testing.sim.stage import run_world

__all__ = ["Kind", "Outcome", "SimReport", "run", "run_controller", "run_world"]
