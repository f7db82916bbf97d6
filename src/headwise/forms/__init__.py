"""What attention is asked and what it answers: which keys a query sees, how scores are made, what a cache holds."""

from headwise.forms.attended import Attended, join
from headwise.forms.codes import Codes
from headwise.forms.paged import Paged, Side
from headwise.forms.pieces import Buckets, Composite, Piece
from headwise.forms.weighted import Weighted
from headwise.forms.where import Blocks, Causal, Full, Tokens, Union, Until, VerticalSlash, Where, Window

__all__ = [
    "Attended",
    "Blocks",
    "Buckets",
    "Causal",
    "Codes",
    "Composite",
    "Full",
    "Paged",
    "Piece",
    "Side",
    "Tokens",
    "Union",
    "Until",
    "VerticalSlash",
    "Weighted",
    "Where",
    "Window",
    "join",
]
