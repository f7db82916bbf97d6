"""headwise runs pretrained transformers over long contexts by giving every attention head just the attention it needs.

Importing it changes nothing outside the package; each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headwise.attention import attend
    from headwise.compiled.fast import Fast, fast
    from headwise.compiled.linear import stream_linears
    from headwise.decoding.speculate import speculate
    from headwise.errors import HeadwiseError
    from headwise.faithful.generate import contrast
    from headwise.forms import Attended
    from headwise.plan import Plan
    from headwise.recipe import Recipe
    from headwise.seams.transformers.cache import Cache, attach, detach, register
    from headwise.seams.transformers.drive import decode, generate, prefill
    from headwise.seams.transformers.encoder_decoder import EncoderDecoderCache
    from headwise.shapes import Mark

__version__ = "0.1.0"

_HOMES = {
    "Attended": "headwise.forms",
    "Cache": "headwise.seams.transformers.cache",
    "EncoderDecoderCache": "headwise.seams.transformers.encoder_decoder",
    "Fast": "headwise.compiled.fast",
    "HeadwiseError": "headwise.errors",
    "Mark": "headwise.shapes",
    "Plan": "headwise.plan",
    "Recipe": "headwise.recipe",
    "attach": "headwise.seams.transformers.cache",
    "attend": "headwise.attention",
    "contrast": "headwise.faithful.generate",
    "decode": "headwise.seams.transformers.drive",
    "detach": "headwise.seams.transformers.cache",
    "fast": "headwise.compiled.fast",
    "generate": "headwise.seams.transformers.drive",
    "prefill": "headwise.seams.transformers.drive",
    "register": "headwise.seams.transformers.cache",
    "speculate": "headwise.decoding.speculate",
    "stream_linears": "headwise.compiled.linear",
}

__all__ = [
    "Attended",
    "Cache",
    "EncoderDecoderCache",
    "Fast",
    "HeadwiseError",
    "Mark",
    "Plan",
    "Recipe",
    "attach",
    "attend",
    "contrast",
    "decode",
    "detach",
    "fast",
    "generate",
    "prefill",
    "register",
    "speculate",
    "stream_linears",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'headwise' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
