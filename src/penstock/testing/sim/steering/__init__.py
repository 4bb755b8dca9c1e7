"""Worlds of whole runs: the real controller's machine steers the real ledger, and everything may die.

Real are the controller's machine and its record, the ledger, its journal and the couriers; twins are the controller's
shell, generators, trainer, scorer, disks, network and clock. ``run_world`` plays one seed. A world is judged by what
its trainer and its workers wrote down, not by what the machine believes.
"""

from penstock.testing.sim.steering.stage import run_world

__all__ = ["run_world"]
