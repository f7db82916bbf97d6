"""Half-space reporting: what lies above a threshold is found exactly, is little, and is nearly all of the attention."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le

from headwise.experiments import Experiment, ExperimentCard, Panel, Part, register
from headwise.forms import Full, Tokens
from headwise.methods.select.hsr import HalfSpace
from headwise.methods.select.hsr_relu import HalfSpaceReLU
from headwise.theory.fitting import generator
from headwise.theory.operators import attended, drawn, error, view_of

EXPONENT = 0.8  # of the number of keys, in the bound on those that are reported
POWER = 2.0  # of ReLU attention
QUERIES = 16
SHARP = 4.0  # times a Gaussian query, for the softmax: few keys are massively activated, which is what it is stated of


@register("half_space")
@dataclass(frozen=True, kw_only=True)
class HalfSpaceSets(Experiment):
    """One query over Gaussian keys, as a new token reads a cache.

    longest: the most keys, by which the reported set is counted. tokens: keys of the rest.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Half-space reporting over Gaussian keys",
        statement="ReLU attention over the reported set is that over all keys; of n Gaussian keys at most 2 n^(4/5) "
        "are reported; softmax attention over them errs less than over as many others",
        paper="HSR-Enhanced Sparse Attention Acceleration, arXiv 2410.10165, sections 4 and 5, Lemma 6.1",
        setting="threshold sigma * sqrt(0.4 ln n), n up to 65536",
        seconds=30,
        systems=(190,),
        differs="the threshold is given as the number of keys that Gaussian scores let pass, and taken by the keys' "
        "own mean and covariance; the structure is a ball tree; softmax is of queries four times as long, which few "
        "keys answer to",
        leaves_out="how long a report takes, for which a ball tree has no bound in many channels, and the bound on the "
        "error by the mass left out, which any set of keys keeps to",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("ReLU attention over the reported set, largest difference to all keys", "relu", "relu_random",
             "as many random keys", below=1e-6),
        Part("reported keys over 2 n^(4/5)", "reported", "reported_half",
             "a threshold of 0, which half of the keys reach", below=1.0),
        Part("softmax's error over that of as many random keys, logarithm", "fewer", "fewer_random",
             "other random keys", below=-1.0),
    )  # fmt: skip
    panels: ClassVar[dict[str, Panel]] = {"reported keys": Panel("keys", "reported", "xy")}

    longest: Annotated[int, Ge(1024), Le(65536)] = 65536
    tokens: Annotated[int, Ge(256), Le(16384)] = 4096

    def draw(self, seed: int) -> dict[str, Any]:
        """Errors and set sizes of one query."""
        chance = generator(self.name, seed)
        q, k, v = drawn(chance, 1, self.tokens, 16, queries=1)
        view, n = view_of(q, k, v), self.tokens
        method = HalfSpaceReLU(_budget(n), power=POWER)
        weighted, bar = method.select(view), float(method.least(view, method.told(view))[0, 0])
        some = torch.randperm(n, generator=chance)[: len(weighted.tokens.indices[0])].sort().values
        true, random = (_relu(q, k, v, own, bar) for own in (torch.arange(n), some))
        found = attended(q, k, v, weighted).out[0, 0, 0]
        errors = torch.tensor([self._errors(chance) for _ in range(QUERIES)]).log().mean(0)
        lengths = [self.longest // 16, self.longest]
        sizes = [self._reported(chance, length) for length in lengths]
        return {
            "measures": {
                "relu": error(found, true),
                "relu_random": error(random, true),
                "reported": sizes[-1] / (2 * self.longest**EXPONENT),
                "reported_half": float((k[0] @ q[0, 0, 0] >= 0).sum()) / (2 * n**EXPONENT),
                "fewer": float(errors[0] - errors[1]),
                "fewer_random": float(errors[2] - errors[1]),
            },
            "lines": {
                "reported keys": {
                    "reported": [list(one) for one in zip(lengths, sizes, strict=True)],
                    "2 n^(4/5)": [[one, 2 * one**EXPONENT] for one in lengths],
                }
            },
        }

    def _reported(self, chance: torch.Generator, n: int) -> int:
        q, k, v = drawn(chance, 1, n, 16, queries=1)
        return len(HalfSpace(_budget(n), sinks=0, recent=0).select(view_of(q, k, v)).indices[0])

    def _errors(self, chance: torch.Generator) -> tuple[float, ...]:
        """The error of softmax over the reported keys of one query, and over as many random ones, drawn twice."""
        q, k, v = drawn(chance, 1, self.tokens, 16, queries=1)
        q = SHARP * q
        read = HalfSpace(_budget(self.tokens), sinks=0, recent=0).select(view_of(q, k, v)).indices[0]
        lots = [torch.randperm(self.tokens, generator=chance)[: len(read)].sort().values for _ in range(2)]
        true = attended(q, k, v, Full()).out
        return tuple(error(attended(q, k, v, Tokens([one])).out, true) for one in (read, *lots))


def _budget(n: int) -> int:
    """How many of n Gaussian scores lie beyond sqrt(0.4 ln n) deviations."""
    return max(1, round(n * 0.5 * math.erfc(math.sqrt(0.2 * math.log(n)))))


def _relu(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, read: torch.Tensor, bar: float) -> torch.Tensor:
    """ReLU attention [width] of one query over the keys at `read`, by its definition."""
    scores = (k[0, read].double() @ q[0, 0, 0].double() - bar) * q.shape[-1] ** -0.5
    weights = scores.clamp(min=0) ** POWER
    return ((weights / weights.sum()) @ v[0, read].double()).float()
