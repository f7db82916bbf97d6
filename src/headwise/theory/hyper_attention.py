"""A sample of the keys stands for all that hashing leaves out, and how its error and its cost grow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le

from headwise.attention.view import View
from headwise.experiments import Experiment, ExperimentCard, Panel, Part, register
from headwise.forms import Causal
from headwise.methods.prefill.hyper import Hyper
from headwise.theory.fitting import generator
from headwise.theory.operators import attended, drawn, error, view_of


@dataclass(frozen=True)
class FirstKeys(Hyper):
    """The control: the first keys of a piece in place of a random sample."""

    def luck(self, view: View) -> torch.Tensor:
        return -torch.arange(view.count, dtype=torch.float32)[None]


@dataclass(frozen=True)
class ByLot(Hyper):
    """The control: buckets that have nothing to do with what is in them."""

    def codes(self, x: torch.Tensor, seed: int) -> torch.Tensor:
        lot = torch.Generator().manual_seed(seed + x.shape[-2])
        return torch.randint(2**self.bits, x.shape[:-1], generator=lot)


@register("hyper_attention")
@dataclass(frozen=True, kw_only=True)
class HyperAttention(Experiment):
    """Gaussian queries and keys of one head, whose norm grows along the text, so that first keys are no fair sample.

    tokens: of the longest text, whose pairs are counted. samples: the largest number of keys that are drawn; the
    smallest is a sixteenth of it.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="HyperAttention's sample and its cost",
        statement="Below the least length nothing is estimated; the error of the log-sum-exp falls as one over the "
        "root of the sample, and buckets of keys that hash alike lessen it; the pairs that are computed grow nearly in "
        "proportion to the text",
        paper="HyperAttention: Long-context Attention in Near-Linear Time, arXiv 2310.05869, algorithms 3 and 4, "
        "Theorem 1",
        setting="blocks of 256, 256 samples, 7 planes, least length 4096, texts of 8K to 64K",
        seconds=60,
        systems=(43,),
        differs="blocks and samples of 32 and a least length of 256 at an eighth of the paper's texts; pairs are "
        "counted, no time is measured",
        leaves_out="time from 8K to 64K tokens, of which pairs at 1K and 8K are counted, and that perplexity rises "
        "with every layer that is replaced",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("below the least length it is dense attention", "short", "estimated",
             "the same text under a shorter least length", below=1e-5),
        Part("the error falls with the sample, slope of logarithms", "slope", "slope_first",
             "the first keys in place of a random sample", below=-0.35),
        Part("and no faster than one over its root: less the slope", "gentle", "gentle_exact",
             "a last sample of all keys, which leaves rounding", below=0.75),
        Part("error on keys that cluster, over that of buckets by lot", "hashed", "unhashed",
             "keys that do not cluster", below=0.8),
        Part("pairs grow nearly in proportion to the text, exponent", "growth", "growth_dense", "dense attention",
             below=1.35),
    )  # fmt: skip
    panels: ClassVar[dict[str, Panel]] = {"error of the log-sum-exp": Panel("sampled keys", "mean error", "xy")}

    tokens: Annotated[int, Ge(1024), Le(65536)] = 8192
    samples: Annotated[int, Ge(64), Le(4096)] = 512

    def draw(self, seed: int) -> dict[str, Any]:
        """Errors and slopes of one head."""
        chance = generator(self.name, seed)
        q, k, v = drawn(chance, 1, 512, 16)
        true = attended(q, k, v, Causal()).out
        short, estimated = (
            error(attended(q, k, v, Hyper(size=32, drawn=32, least=least).where(view_of(q, k, v, seed))).out, true)
            for least in (257, 64)
        )
        counts = [self.samples // 16, self.samples // 4, self.samples]
        random, first = (self._errors(one, chance, counts, seed) for one in (Hyper, FirstKeys))
        every = self._errors(Hyper, chance, [2 * self.samples], seed)[0]
        lengths = [self.tokens // 8, self.tokens]
        method = Hyper(size=32, drawn=32, least=256)
        pairs = [self._pairs(method, chance, length, seed) for length in lengths]
        slope = _slope(counts, random)
        clustered, plain = (self._hashed(chance, seed, clusters) for clusters in (16, 0))
        return {
            "measures": {
                "short": short,
                "estimated": estimated,
                "slope": slope,
                "slope_first": _slope(counts, first),
                "gentle": -slope,
                "gentle_exact": -_slope([counts[0], 2 * self.samples], [random[0], max(every, 1e-9)]),
                "hashed": clustered,
                "unhashed": plain,
                "growth": _slope(lengths, pairs),
                "growth_dense": _slope(lengths, [Causal().visible_pairs(one, one) for one in lengths]),
            },
            "lines": {
                "error of the log-sum-exp": {
                    "random sample": [list(one) for one in zip(counts, random, strict=True)],
                    "first keys": [list(one) for one in zip(counts, first, strict=True)],
                }
            },
        }

    def _errors(self, method: type[Hyper], chance: torch.Generator, counts: list[int], seed: int) -> list[float]:
        """Mean error of the log-sum-exp of the second half of a text, which reads the first by buckets and sample, by
        how many keys are drawn."""
        n = 4 * self.samples
        q, k, v = drawn(chance, 1, n, 16)
        k = k * torch.linspace(0.5, 1.5, n)[:, None]
        true, found = attended(q, k, v, Causal()).lse[..., n // 2 :], []
        for count in counts:
            made = [
                attended(q, k, v, method(size=8, drawn=count, least=n // 2).where(view_of(q, k, v, 100 * seed + lot)))
                for lot in range(4)
            ]
            found.append(sum(float((one.lse[..., n // 2 :] - true).abs().mean()) for one in made) / len(made))
        return found

    def _hashed(self, chance: torch.Generator, seed: int, clusters: int) -> float:
        """The error of outputs with buckets by hashing over that with buckets by lot, where queries and keys lie around
        so many centres, or anywhere where these are 0."""
        n = 4 * self.samples
        q, k, v = drawn(chance, 1, n, 16)
        if clusters:
            centres = 3 * torch.nn.functional.normalize(torch.randn(clusters, 16, generator=chance), dim=-1)
            own, other = (centres[torch.randint(clusters, (n,), generator=chance)] for _ in range(2))
            q, k = 0.3 * q + own, 0.3 * k + other
        true = attended(q, k, v, Causal()).out[:, :, n // 2 :]
        errors = []
        for method in (Hyper, ByLot):
            where = method(size=n // 16, drawn=16, least=n // 2).where(view_of(q, k, v, seed))
            errors.append(float((attended(q, k, v, where).out[:, :, n // 2 :] - true).square().mean()))
        return errors[0] / errors[1]

    def _pairs(self, method: Hyper, chance: torch.Generator, tokens: int, seed: int) -> float:
        q, k, v = drawn(chance, 1, tokens, 16)
        return method.where(view_of(q, k, v, seed)).visible_pairs(tokens, tokens)


def _slope(xs: list[int], ys: list[float]) -> float:
    """Of the line through the logarithms of the first and the last point."""
    return math.log(ys[-1] / ys[0]) / math.log(xs[-1] / xs[0])
