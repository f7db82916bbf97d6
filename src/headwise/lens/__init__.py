"""Look inside: what the heads of a model do, and what becomes of the model when they are changed."""

from headwise.lens.interventions import Head, Patch, ablated, patched, patched_rows, recorded, scaled, steered
from headwise.lens.look import Look, looked_at
from headwise.lens.measured import Measured, measured, usual
from headwise.lens.scene import Scene, Text

__all__ = [
    "Head",
    "Look",
    "Measured",
    "Patch",
    "Scene",
    "Text",
    "ablated",
    "looked_at",
    "measured",
    "patched",
    "patched_rows",
    "recorded",
    "scaled",
    "steered",
    "usual",
]
