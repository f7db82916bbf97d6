"""Attention arithmetic: tensors in, tensors out. Knows no model, no cache and no method."""

from headwise.attention.attend import BACKENDS, Record, attend, attend_pages, attend_with_record, choose_backend
from headwise.attention.attended import Attended, join
from headwise.attention.byproducts import (
    block_maxima,
    column_mass,
    kept_mass,
    row_entropy,
    row_lse,
    window_probabilities,
)
from headwise.attention.paged import Paged, Side
from headwise.attention.pieces import Buckets, Composite, Piece
from headwise.attention.request import Backend, Request
from headwise.attention.view import Memory, View
from headwise.attention.weighted import Weighted
from headwise.attention.where import Blocks, Causal, Full, Tokens, Union, Until, VerticalSlash, Where, Window

__all__ = [
    "BACKENDS",
    "Attended",
    "Backend",
    "Blocks",
    "Buckets",
    "Causal",
    "Composite",
    "Full",
    "Memory",
    "Paged",
    "Piece",
    "Record",
    "Request",
    "Side",
    "Tokens",
    "Union",
    "Until",
    "VerticalSlash",
    "View",
    "Weighted",
    "Where",
    "Window",
    "attend",
    "attend_pages",
    "attend_with_record",
    "block_maxima",
    "choose_backend",
    "column_mass",
    "join",
    "kept_mass",
    "row_entropy",
    "row_lse",
    "window_probabilities",
]
