"""Row 209 on the embedded model: without its retrieval heads it does not copy from the text, without others it does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from random import Random
from typing import Any

import torch

import headwise
from headwise.assets import embedded_model
from headwise.bench.judging.intervals import of_scores, of_strata
from headwise.decoders import decoder
from headwise.faithful.looks import Looks
from headwise.faithful.measured import planted, retrieval_heads, tokenizer_of
from headwise.seams.transformers.beside import Head
from headwise.seams.transformers.load import load_model

HEADS, DOCUMENTS = 8, 16  # masked; of 4 questions each


@cache
def model() -> Any:
    return load_model(str(embedded_model()), "float32")


def copied(heads: Sequence[Head]) -> list[float]:
    """Whether each answer's first token is said, where these heads are masked, of 64 planted facts."""
    own, found, left = model(), [], torch.zeros(1, dtype=torch.int64)
    for recall in planted(tokenizer_of(own, ""), DOCUMENTS):
        base = headwise.Cache(own, "")
        headwise.prefill(own, base, recall.ids)
        for question, answer in recall.asked:
            looks = Looks(own, base.fork(), decoder("decore(named='0.0')"))
            looks.read(torch.cat((recall.ids, question), dim=1), left)
            found.append(float(looks.masked(heads).argmax(-1) == answer[0, 0]))
    return found


def test_masking_retrieval_heads_takes_the_copying_away() -> None:
    own = model()
    best = retrieval_heads(own, HEADS)
    layers = headwise.attach(own).geometry.layers
    others = [(layer, head) for layer, one in enumerate(layers) for head in range(one.query_heads)]
    drawn = Random(0).sample([one for one in others if one not in best], HEADS)
    whole, without, random = copied([]), copied(best), copied(drawn)
    fallen = of_strata([[one - two for one, two in zip(whole, without, strict=True)]])
    beside = of_strata([[one - two for one, two in zip(random, without, strict=True)]])
    assert len(whole) == 64 and of_scores(whole).mean > 0.8
    assert fallen.low > 0.5 and beside.low > 0.5
