"""``penstock demo``, ``sim`` and ``explore``: run what others wrote, and turn what it found into an answer."""

from __future__ import annotations
