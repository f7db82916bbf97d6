"""What a head may be given: kinds of loss by how much. And rivals, which give every head the same."""

from __future__ import annotations

from headwise.recipe import Recipe

EVICTIONS = ("streaming", "snapkv", "expected_attention", "keydiff")
CODECS = ("int8", "int4", "int2")
SHARES = (0.01, 0.03, 0.1, 0.3)  # of the tokens; the same for every budget, so that one table serves them all
RIVALS = (*EVICTIONS, "h2o", "tova", "l2norm")
SHARED_OUT = tuple(f"{name} | {budget}" for name in ("snapkv", "keydiff") for budget in ("ada", "pyramid"))
RIVAL_CODECS = (*CODECS, "kivi", "low_rank(bits=4)")  # for all heads, without an eviction
SQUEEZED = "int4"  # what evictions are combined with


def default_menu() -> list[Recipe]:
    """Dense, codecs alone, and evictions alone and with a codec."""
    evictions = [f"{name}({share})" for share in SHARES for name in EVICTIONS]
    sentences = ["dense", *CODECS, *evictions, *(f"{one} | {SQUEEZED}" for one in evictions)]
    return [Recipe.parse(sentence) for sentence in sentences]


def rivals() -> list[str]:
    """Sentences whose eviction budget is to be fitted to a plan's bytes: methods alone or shared out, and squeezed."""
    evictions = (*RIVALS, *SHARED_OUT)
    return [*evictions, *(f"{one} | {SQUEEZED}" for one in evictions)]
