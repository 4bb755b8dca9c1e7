"""The refusals that have two families: Penstock's, and the ValueError that TransferQueue's callers catch."""

from __future__ import annotations

from penstock.errors import FieldNotProduced, UnknownName

__all__ = ["FieldsNotReady", "NotFound"]


class NotFound(UnknownName, ValueError):
    """Rows or a partition that are not there; ``keys`` names the rows. Nothing was returned, of the others neither."""


class FieldsNotReady(FieldNotProduced, ValueError):
    """Columns that are not there for all of the rows; ``missing`` names them, ``keys`` the rows that lack one."""
