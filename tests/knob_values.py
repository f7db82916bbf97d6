"""Values of knobs, made from how they are declared: right ones, the ends of ranges, wrong ones."""

from __future__ import annotations

import math
from dataclasses import fields
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from annotated_types import Len
from hypothesis import strategies as st

from headwise import knobs
from headwise.shapes import MOST_BYTES, MOST_TOKENS, Amount

MOST_ID = 999_999_999  # of a token, as far as a knob knows
# of no type that a knob has
NEVER = (None, [1], (1,), {}, object(), b"1", 1j, torch.tensor(1), np.True_, math.nan, math.inf, -math.inf, 10**400)


def declared(cls: type) -> dict[str, Any]:
    """The types of a class's knobs, by name."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls) if field.init}


def bounds(hint: Any) -> dict[str, Any]:
    """The limits of a number: ge, gt, le, lt."""
    limits = {type(limit).__name__.lower(): limit for limit in get_args(hint)[1:]}
    return {name: getattr(limits[name], name) for name in ("ge", "gt", "le", "lt") if name in limits}


def _is_text(hint: Any) -> bool:
    return hint is str or (get_origin(hint) is Annotated and get_args(hint)[0] is str)


def right(hint: Any) -> st.SearchStrategy[Any]:
    """Values in range."""
    if hint == knobs.Budget:
        shares = st.floats(0, 1, exclude_min=True)
        tokens = st.integers(1, MOST_TOKENS)
        sums = st.builds(lambda share, count: Amount(share, count), shares, tokens)
        return shares | tokens | sums | st.integers(1, MOST_BYTES).map(lambda count: Amount(bytes=count))
    if hint == knobs.Ids:
        return st.lists(st.integers(0, MOST_ID), max_size=9).map(lambda ids: " ".join(map(str, ids)))
    drawn = st.from_type(hint)
    return drawn.map(lambda value: value | 1) if hint == knobs.Odd else drawn


def ends(hint: Any) -> tuple[Any, Any]:
    """The lowest and the highest value in range; of a choice, the first and the last."""
    if hint == knobs.Budget:
        return 1, MOST_TOKENS
    if get_origin(hint) in (Union, UnionType):
        return ends(get_args(hint)[-1])
    if get_origin(hint) is Literal:
        return get_args(hint)[0], get_args(hint)[-1]
    if hint is bool:
        return False, True
    if hint == knobs.Ids:
        return "", f"0 {MOST_ID}"
    if _is_text(hint):
        return "a", "\U0001f600" * 1000
    limits, real = bounds(hint), get_args(hint)[0] is float
    low = limits["ge"] if "ge" in limits else math.nextafter(limits["gt"], math.inf)
    high = limits.get("le", knobs.MOST) if "lt" not in limits else math.nextafter(limits["lt"], 0)
    return (float(low), float(high)) if real else (low, high - (hint == knobs.Odd))


def wrong(hint: Any) -> list[Any]:
    """Values of a wrong type and out of range, each of which has to be refused."""
    if hint == knobs.Budget:
        return [*NEVER, True, 0, -1, 0.0, -0.5, 1.5, "", "much", "0B", "64iB", "9" * 50 + "GiB", "64MiB "[::-1]]
    if get_origin(hint) in (Union, UnionType):
        return [*NEVER, True, "often", -1, 2.5]
    if get_origin(hint) is Literal:
        return [*NEVER, "nothing", -1, 2.5, True]
    if hint is bool:
        return [*NEVER, 1, 0, "True"]
    if hint == knobs.Ids:
        return [*NEVER, 1, 2.5, True, "one", "-1", "1, 2", "1.0", f"{MOST_ID + 1}"]
    if _is_text(hint):
        sizes = ["", "x" * 1001, "\ud800"] if any(isinstance(one, Len) for one in get_args(hint)) else []
        return [*NEVER, 1, 2.5, True, *sizes]
    low, high = ends(hint)
    if get_args(hint)[0] is int:
        return [*NEVER, True, "1", 2.5, 1.0, low - 1, *([high + 2] if "le" in bounds(hint) else [])]
    return [*NEVER, True, "0.5", math.nextafter(low, -math.inf), math.nextafter(high, math.inf)]
