"""Sentinel (Zhang et al. 2025, arXiv 2505.23277): the sentences that a probe of a model's attention finds relevant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from headwise.arrangers import Arranger, ArrangerCard, register
from headwise.bench.job import encode
from headwise.context.asked import Arranged, Asked, refuse_length
from headwise.context.looks import span_shares, spans_of
from headwise.context.ranker import ranked
from headwise.context.sentences import sentences
from headwise.context.shipped import Probe, measured
from headwise.errors import HeadwiseError
from headwise.knobs import PositiveShare

FIX = "train one with `headwise context measure MODEL --probe FILE` and give sentinel(probe='FILE')"
Sentence = tuple[int, str]  # the place of its document, and its text


@register("sentinel")
@dataclass(frozen=True)
class Sentinel(Arranger):
    """keep: share of the documents' tokens that may stay, in whole sentences. probe: a file of `headwise context
    measure`; the one that ships where none is named."""

    card = ArrangerCard(
        "Keeps the sentences that a logistic regression over the last token's attention finds relevant, in their order",
        "Sentinel: Attention Probing of Proxy Models for LLM Context Compression, 2505.23277, section 3",
        "one, of whatever model is given: a small one may choose for a large one",
        "the probe that ships was trained on made-up passages, the paper's on questions of data sets, of "
        "Qwen2.5-0.5B; the whole context is read in one pass; at least one sentence stays",
        (188,),
    )
    keep: PositiveShare = 0.2
    probe: str = ""

    def arrange(self, asked: Asked) -> Arranged:
        if self.keep == 1:
            return asked.arranged(range(len(asked.documents)))
        model, tokenizer = asked.needs("sentinel")
        probe = measured(Probe, self.probe, model, FIX)
        known, features = looked_at(asked)
        if features.shape[1] != len(probe.weights):
            raise HeadwiseError(
                f"the probe has {len(probe.weights)} weights, the model {features.shape[1]} heads; {FIX}"
            )
        found = torch.sigmoid(features @ torch.tensor(probe.weights) + probe.bias).tolist()
        kept = within(tokenizer, [text for _, text in known], ranked(found), self.keep)
        best = {place: max(found[i] for i, one in enumerate(known) if one[0] == place) for place, _ in known}
        return of_sentences(asked, known, kept, best)


def looked_at(asked: Asked) -> tuple[list[Sentence], torch.Tensor]:
    """The sentences of all documents, and what the last token gives to each: the mean share of a token, by layer and
    head, of what all sentences get there, [sentences, layers * heads]."""
    model, tokenizer = asked.needs("sentinel")
    known = [(place, text) for place, one in enumerate(asked.documents) for text in sentences(one)]
    parts = [list[torch.Tensor]() for _ in asked.documents]
    for place, text in known:
        parts[place].append(encode(tokenizer, text))
    before, after = asked.wording.document.split("{document}", 1)
    head, *_, tail = asked.tokens(asked.documents)
    pieces, own = [head], []
    for document in parts:
        around = [encode(tokenizer, one) if one else torch.zeros(1, 0, dtype=torch.int64) for one in (before, after)]
        pieces.append(around[0])
        own += [len(pieces) + i for i in range(len(document))]
        pieces += [*document, around[1]]
    pieces.append(tail)
    refuse_length(model, sum(piece.shape[1] for piece in pieces))
    spans = [spans_of(pieces)[i] for i in own]
    shares = span_shares(model, torch.cat(pieces, dim=1), spans)[:, :, 0]
    mean = shares / torch.tensor([last - first for first, last in spans]).clamp(min=1)
    total = shares.sum(-1, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)
    return known, (mean / total).flatten(0, 1).T.contiguous()


def within(tokenizer: object, texts: Sequence[str], order: Sequence[int], keep: float) -> set[int]:
    """The first of `order` that fit into a share of the tokens of all, one after the other until one does not; at least
    one."""
    counts = [encode(tokenizer, text).shape[1] for text in texts]
    left, kept = keep * sum(counts), set[int]()
    for place in order:
        left -= counts[place]
        if kept and left < 0:
            break
        kept.add(place)
    return kept


def of_sentences(asked: Asked, known: Sequence[Sentence], kept: set[int], scores: dict[int, float]) -> Arranged:
    """What is left of the documents: their kept sentences in their order; documents without one are left out."""
    left: dict[int, list[str]] = {}
    for i, (place, text) in enumerate(known):
        if i in kept:
            left.setdefault(place, []).append(text)
    documents = tuple("".join(texts).strip() for texts in left.values())
    return replace(asked.arranged(list(left), scores, 1), documents=documents)
