"""Imported by every Python process of a ring's steps, as its folder is in PYTHONPATH: SIGUSR1 writes its stacks down.

Invariant: a process that is asked writes and goes on; one that is not asked leaves an empty file.
"""

import faulthandler
import os
import signal
import socket
from pathlib import Path

if (folder := os.environ.get("PENSTOCK_STACKS")) and Path(folder).is_dir():
    where = Path(folder) / f"{socket.gethostname()}-{os.getpid()}"
    faulthandler.register(signal.SIGUSR1, file=where.open("a"), all_threads=True)
