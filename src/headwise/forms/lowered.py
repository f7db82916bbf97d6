"""What a form of attention comes down to: the few shapes of work that kernels know, whatever the form is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, Union

from torch import Tensor

if TYPE_CHECKING:
    from headwise.forms.gathered import Gathered
    from headwise.forms.listed import Blocks, VerticalSlash
    from headwise.forms.pieces import Buckets


@dataclass(frozen=True)
class Rule:
    """One rule for every head and query: of the keys up to its own place where `causal`, of all keys where not, the
    `left` keys before it and itself, and the first `sinks`; everything where `left` is None."""

    causal: bool = True
    left: int | None = None
    sinks: int = 0


@dataclass(frozen=True, eq=False)
class Indices:
    """Per KV head, the stored keys at `lists[head] [m]`, ascending, that its queries see, none after their own place.

    table: `[h, m]` where all heads have as many. bias: per head `[g or 1, t or 1, m]`, added to the scaled scores.
    """

    lists: tuple[Tensor, ...]
    table: Tensor | None = None
    bias: tuple[Tensor, ...] | None = None


# None: the form has to be drawn as a mask, which the reference alone does.
Lowered: TypeAlias = Union[Rule, Indices, "Blocks", "VerticalSlash", "Buckets", "Gathered", None]
