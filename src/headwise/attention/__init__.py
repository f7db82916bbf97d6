"""Attention arithmetic: tensors in, tensors out. Knows no model, no cache and no method."""

from headwise.attention.attend import attend, attend_pages, reads_in_place
from headwise.attention.byproducts import (
    block_maxima,
    column_mass,
    column_peaks,
    kept_mass,
    row_entropy,
    row_lse,
    window_probabilities,
)
from headwise.attention.view import Memory, View

__all__ = [
    "Memory",
    "View",
    "attend",
    "attend_pages",
    "block_maxima",
    "column_mass",
    "column_peaks",
    "kept_mass",
    "reads_in_place",
    "row_entropy",
    "row_lse",
    "window_probabilities",
]
