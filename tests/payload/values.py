"""Columns to try: every carried dtype, and equality to the bit."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from penstock.payload.dtypes import ITEM_BYTES, OBJECT

DTYPES = [name for name in ITEM_BYTES if name != OBJECT]

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), inner, max_size=3)
        | st.dictionaries(st.integers(-5, 5), inner, max_size=2)
    ),
    max_leaves=6,
)


def random_tensor(dtype: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """A tensor of random bits: NaNs with payloads, infinities and negative zeros included."""
    kind: torch.dtype = getattr(torch, dtype)
    count = torch.Size(shape).numel()
    generator = torch.Generator().manual_seed(seed)
    top = 2 if dtype == "bool" else 256
    raw = torch.randint(0, top, (count * kind.itemsize,), dtype=torch.uint8, generator=generator)
    return raw.view(kind).view(shape) if count else torch.empty(shape, dtype=kind)


def rows_of(values: Any) -> list[torch.Tensor]:
    return list(values.unbind()) if isinstance(values, torch.Tensor) else list(values)


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    if not left.numel():
        return True
    as_bytes = [t.detach().resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8) for t in (left, right)]
    return torch.equal(*as_bytes)


def same_rows(left: Any, right: Any) -> bool:
    ours, theirs = rows_of(left), rows_of(right)
    return len(ours) == len(theirs) and all(map(same_bits, ours, theirs))
