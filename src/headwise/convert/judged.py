"""What a conversion cost: perplexity, needles by depth and bytes of the cache, of the source and of what came out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headwise.bench.job import recalls
from headwise.bench.judging.intervals import of_strata
from headwise.convert.texts import losses
from headwise.experiments import rounded
from headwise.knobs import Knobs, NonNegative, Positive
from headwise.tasks.needle import NiahSingle

DEPTHS = 5
MOST_PERPLEXITY, MOST_NEEDLES = 1.05, 0.05  # what a conversion may cost, as a factor and as a share, and pass
Once = Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]  # what was kept under a key, else what is made


@dataclass(frozen=True)
class Asked(Knobs):
    """windows, tokens: of a book, whose loss is asked. needles: facts that are looked for, at five depths, in texts of
    `context` tokens; 0 asks for none."""

    windows: Positive = 32
    tokens: Positive = 128
    needles: NonNegative = 10
    context: Positive = 512


@torch.no_grad()
def found_needles(model: Any, tokenizer: Any, asked: Asked) -> list[bool]:
    """Which needles greedy decoding would tell, one forward each; the depth is the number's, modulo 5."""
    told = []
    for one in recalls(tokenizer, NiahSingle(depths=DEPTHS), asked.context, asked.needles, seed=0, asks=1):
        ids, places = one.with_answers()
        said = model(input_ids=ids, use_cache=False).logits[0, places].argmax(-1)
        told.append(bool(torch.equal(said, ids[0, places + 1])))
    return told


def measured(model: Any, tokenizer: Any, windows: Tensor, asked: Asked) -> dict[str, Any]:
    """The losses of windows, and which needles were found."""
    return {"losses": losses(model, windows), "needles": found_needles(model, tokenizer, asked)}


def judged(source: dict[str, Any], made: dict[str, Any], numbers: tuple[int, int], element: int) -> dict[str, Any]:
    """What `measured` found of both, side by side. numbers: that a token adds to either's cache, of `element` bytes.

    experimental: whether the perplexity may have risen by more than 5 %, by the end of its 95 % interval, or more than
    5 points of the needles are gone.
    """
    above = of_strata([[a - b for a, b in zip(made["losses"], source["losses"], strict=True)]])
    ratio = {"mean": math.exp(above.mean), "low": math.exp(above.low), "high": math.exp(above.high)}
    shares = [_by_depth(one["needles"]) for one in (source, made)]
    lost = sum(source["needles"]) - sum(made["needles"])
    gone = lost > MOST_NEEDLES * len(source["needles"])
    found: dict[str, Any] = rounded(
        {
            "perplexity": [math.exp(sum(one["losses"]) / len(one["losses"])) for one in (source, made)],
            "ratio": ratio,
            "needles": {depth: [shares[0][depth], shares[1][depth]] for depth in shares[0]},
            "bytes_a_token": [element * one for one in numbers],
        }
    )
    return found | {"experimental": ratio["high"] > MOST_PERPLEXITY or gone}


def _by_depth(right: list[bool]) -> dict[str, float]:
    """By depth, the share of needles that were found."""
    asked = {f"{depth / (DEPTHS - 1):.0%}": right[depth::DEPTHS] for depth in range(DEPTHS)}
    return {depth: sum(own) / len(own) for depth, own in asked.items() if own}
