"""What decoding costs where reading the cache counts as much as computing: Kinetics' eFLOPs (2506.05333, section 2).

eFLOPs = FLOPs + intensity * bytes read of the cache. Weights are read for many trials at once and count as FLOPs alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from headwise.errors import HeadwiseError
from headwise.geometry import Geometry

INTENSITY = 562.5  # FLOPs that the paper's accelerator computes while it reads one byte


@dataclass(frozen=True)
class Cost:
    """compute: FLOPs. reads: bytes of the cache. intensity: FLOPs that a byte read is worth."""

    compute: float
    reads: float
    intensity: float = INTENSITY

    @property
    def eflops(self) -> float:
        """Both in one number."""
        return self.compute + self.intensity * self.reads


@dataclass(frozen=True)
class Decoding:
    """A model that generates. parameters: that each token passes. query_width, kv_width: numbers of all queries, and of
    all keys, that one token has in all layers together. element: bytes of a number in the cache."""

    parameters: float
    query_width: int
    kv_width: int
    element: int = 2

    @classmethod
    def of(cls, geometry: Geometry, parameters: float) -> Decoding:
        """The model of this geometry, all of whose layers see all tokens; HeadwiseError where one does not."""
        if any(one.window is not None for one in geometry.layers):
            raise HeadwiseError("eFLOPs are counted for layers that see all tokens, and this model has sliding windows")
        layers = geometry.layers
        return cls(
            parameters,
            sum(one.query_heads * one.key_width for one in layers),
            sum(one.kv_heads * one.key_width for one in layers),
        )

    def dense(self, context: int, generated: int, intensity: float = INTENSITY) -> Cost:
        """Of one trial of `generated` tokens after `context`, by dense attention: each reads all before it."""
        pairs = context * generated + generated**2 / 2
        return self.of_pairs(generated, pairs, 0.0, intensity)

    def block_topk(self, context: int, generated: int, budget: int, size: int, intensity: float = INTENSITY) -> Cost:
        """Of one trial that reads the best blocks of `size` tokens up to `budget`, found by one pooled key a block."""
        reached = min(generated, max(0, budget - context))  # tokens until there is more than the budget
        pairs = context * reached + reached**2 / 2 + budget * (generated - reached)
        looked = (context * generated + generated**2 / 2) / size
        return self.of_pairs(generated, pairs, looked, intensity)

    def of_pairs(self, generated: int, pairs: float, looked: float, intensity: float = INTENSITY) -> Cost:
        """Of so many pairs and looks at blocks. A pair takes two products of a head's width, and two numbers are read
        of it; a look at a block takes one of each."""
        compute = 2 * self.parameters * generated + (4 * pairs + 2 * looked) * self.query_width
        return Cost(compute, (2 * pairs + looked) * self.kv_width * self.element, intensity)


def pass_at(trials: int, right: int, count: int) -> float:
    """The chance that one of `count` trials solves a problem that `right` of `trials` solved, drawn without putting
    back."""
    if not 0 <= right <= trials or not 1 <= count <= trials:
        raise HeadwiseError(f"pass@{count} of {right} right trials in {trials}: give counts that fit")
    return 1 - math.comb(trials - right, count) / math.comb(trials, count)
