"""What a head may be given: kinds of loss by how much, and rivals that give every head the same."""

from __future__ import annotations

from headwise.recipe import Recipe

EVICTIONS = ("streaming", "snapkv", "expected_attention", "keydiff", "tova")
CODECS = ("int8", "int4", "int2")
SHARES = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5)
LARGEST = 4  # times the budget: a head that keeps more leaves too little to all the others
RIVALS = ("streaming", "snapkv", "expected_attention", "keydiff", "tova", "h2o", "l2norm", "critic", "task_kv")
SQUEEZED = "int4"  # what rivals and candidates are combined with


def default_menu(share: float) -> list[Recipe]:
    """Dense, codecs alone, and evictions alone and with a codec, for a budget of `share` (0 to 1) of dense bytes."""
    shares = [one for one in SHARES if one <= LARGEST * share] or SHARES[:1]
    evictions = [f"{name}({part})" for part in shares for name in EVICTIONS]
    sentences = ["dense", *CODECS, *evictions, *(f"{one} | {SQUEEZED}" for one in evictions)]
    return [Recipe.parse(sentence) for sentence in sentences]


def rivals() -> list[str]:
    """Sentences whose eviction budget is to be fitted to a plan's bytes: methods alone, squeezed, or shared out."""
    return [f"{name}{rest}" for name in RIVALS for rest in ("", f" | {SQUEEZED}")] + ["snapkv | ada"]
