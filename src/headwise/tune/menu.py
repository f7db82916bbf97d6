"""What a head may be given: kinds of loss by how much. And rivals, which give every head the same."""

from __future__ import annotations

from collections.abc import Sequence

from headwise.recipe import Recipe

EVICTIONS = ("streaming", "snapkv", "expected_attention", "keydiff")
CODECS = ("int8", "int(key=8, value=4)", "balanced")
SHARES = (0.01, 0.03, 0.1, 0.3)  # of the tokens; the same for every budget, so that one table serves them all
READ_AGAIN = ("kvzip(0.1)", "kvzip(0.3)")  # the model reads the document once more for each, so there are few
RIVALS = (*EVICTIONS, "kvzip", "h2o", "tova", "l2norm")
SHARED_OUT = (
    *(f"{name} | {budget}" for name in ("snapkv", "keydiff") for budget in ("ada", "pyramid")),
    "kvzip | ada",  # as its paper has it: heads compete for a budget
)
RIVAL_CODECS = (*CODECS, "int4", "kivi", "int2", "low_rank(bits=4)")  # for all heads, without an eviction
SQUEEZED = "balanced"  # what a head's evictions are combined with: of the codecs of its bytes the one that loses least
RIVALS_SQUEEZED = ("int(key=8, value=4)", SQUEEZED)


def default_menu() -> list[Recipe]:
    """Dense, codecs alone, and evictions with a codec."""
    evictions = [*(f"{name}({share})" for share in SHARES for name in EVICTIONS), *READ_AGAIN]
    return [Recipe.parse(sentence) for sentence in ("dense", *CODECS, *_squeezed(evictions, SQUEEZED))]


def rivals() -> list[str]:
    """Sentences whose eviction budget is to be fitted to a plan's bytes: methods alone or shared out, and squeezed."""
    evictions = (*RIVALS, *SHARED_OUT)
    return [*evictions, *(one for codec in RIVALS_SQUEEZED for one in _squeezed(evictions, codec))]


def _squeezed(evictions: Sequence[str], codec: str) -> list[str]:
    """Every eviction with a codec."""
    return [f"{one} | {codec}" for one in evictions]
