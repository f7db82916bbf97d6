"""What attention is asked and what it answers: which keys a query sees, how scores are made, what a cache holds."""

from headwise.forms.attended import Attended, join
from headwise.forms.codes import Codes
from headwise.forms.edit import Edit, Raised, moved
from headwise.forms.gathered import Gathered
from headwise.forms.listed import Blocks, Tokens, VerticalSlash
from headwise.forms.lowered import Indices, Lowered, Rule
from headwise.forms.narrowed import Narrowed
from headwise.forms.paged import Paged, Side
from headwise.forms.pieces import Buckets, Composite, Piece, near
from headwise.forms.scoring import Scoring, Sinks
from headwise.forms.tree import Tree
from headwise.forms.weighted import Weighted
from headwise.forms.where import Causal, Full, Union, Until, Where, Window

__all__ = [
    "Attended",
    "Blocks",
    "Buckets",
    "Causal",
    "Codes",
    "Composite",
    "Edit",
    "Full",
    "Gathered",
    "Indices",
    "Lowered",
    "Narrowed",
    "Paged",
    "Piece",
    "Raised",
    "Rule",
    "Scoring",
    "Side",
    "Sinks",
    "Tokens",
    "Tree",
    "Union",
    "Until",
    "VerticalSlash",
    "Weighted",
    "Where",
    "Window",
    "join",
    "moved",
    "near",
]
