"""What ``penstock doctor`` finds: one thing that was looked at, how bad it is, what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["Finding", "Severity"]

Severity: TypeAlias = Literal["ok", "note", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: its name.
        severity: ``problem`` keeps a plane from working, ``warning`` may, ``note`` is for information.
        found: what is.
        remedy: what to do, empty when nothing.
    """

    check: str
    severity: Severity
    found: str
    remedy: str = ""
