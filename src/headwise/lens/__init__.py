"""Look inside: what the heads of a model do, and what becomes of the model when they are changed."""

from headwise.lens.interventions import Head, Patch, ablated, patched, patched_rows, recorded, scaled, steered
from headwise.lens.look import Look, looked_at
from headwise.lens.measured import Measured, measured, usual
from headwise.lens.scene import Scene, Text
from headwise.lens.tracing import Contrast, along, brought_back, every_head, repeats, traced

__all__ = [
    "Contrast",
    "Head",
    "Look",
    "Measured",
    "Patch",
    "Scene",
    "Text",
    "ablated",
    "along",
    "brought_back",
    "every_head",
    "looked_at",
    "measured",
    "patched",
    "patched_rows",
    "recorded",
    "repeats",
    "scaled",
    "steered",
    "traced",
    "usual",
]
