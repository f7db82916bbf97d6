"""Look inside: what the heads of a model do, and what becomes of the model when they are changed."""

from headwise.lens.host_look import HostLook, Reading, text
from headwise.lens.hosts import HostScene, looked_into, measured_host, read_picture, read_sound
from headwise.lens.interventions import Head, Patch, ablated, patched, patched_rows, recorded, scaled, steered
from headwise.lens.look import Look, looked_at
from headwise.lens.measured import Measured, measured, usual
from headwise.lens.scene import Scene, Text
from headwise.lens.tracing import Contrast, along, brought_back, every_head, repeats, traced

__all__ = [
    "Contrast",
    "Head",
    "HostLook",
    "HostScene",
    "Look",
    "Measured",
    "Patch",
    "Reading",
    "Scene",
    "Text",
    "ablated",
    "along",
    "brought_back",
    "every_head",
    "looked_at",
    "looked_into",
    "measured",
    "measured_host",
    "patched",
    "patched_rows",
    "read_picture",
    "read_sound",
    "recorded",
    "repeats",
    "scaled",
    "steered",
    "text",
    "traced",
    "usual",
]
