"""The example of TransferQueue's key-value interface."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "transfer_queue_kv.py"


def test_the_key_value_example_consumes_what_its_workers_put() -> None:
    """Every group once, and nothing is left."""
    command = [sys.executable, str(EXAMPLE), "--groups", "6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"trained 6 groups of {6 * (3 + 4 + 5 + 6)} tokens; 0 rows are left"
