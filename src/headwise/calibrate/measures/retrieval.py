"""Which KV heads retrieve: what their attention does while the model copies from its context, in one prompt each."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from headwise.calibrate.look import watched
from headwise.calibrate.subject import model_of
from headwise.errors import HeadwiseError
from headwise.observe import Found, LastQueries, Material, Progress, Recall, check_recalls, measure
from headwise.seams.transformers.cache import PreTrainedModel, attach
from headwise.seams.transformers.drive import prefill

TAIL = 32  # tokens of a document read with each question, so that question and answer are a prompt, however short


def retrieval_scores(model: PreTrainedModel, recalls: Sequence[Recall]) -> torch.Tensor:
    """Retrieval score, float32 [layers, kv_heads, g], of every query head (2404.15574, section 2).

    The share of answer tokens at whose copying the head's most attended token is the same token, inside the needle:
    a place of the document where the answer stands as a whole. Answers that stand nowhere are refused.
    """
    check_recalls(recalls)
    attach(model).geometry.size("g")  # refused before any work
    hits, count = torch.zeros(()), 0
    for recall in recalls:
        latest = LastQueries(max(answer.shape[1] for _, answer in recall.asked), lambda attention: attention.argmax(-1))
        cache, ids = watched(model, latest), recall.ids[0]
        document, tail = recall.ids[:, :-TAIL], recall.ids[:, -TAIL:]
        if document.shape[1]:
            prefill(model, cache, document)
            cache.keep_states()
        for question, answer in recall.asked:
            size, places = answer.shape[1], _places(ids, answer[0])
            prefill(model, cache, torch.cat((tail, question, answer[:, :-1]), dim=1), None)
            cache.truncate(document.shape[1])
            best = latest.noted(cache.seam.geometry)[..., -size:]  # [layers, h, g, size]
            same = ids[best.clamp(max=len(ids) - 1)] == answer[0]
            hits = hits + (torch.isin(best, places) & same).float().sum(-1)
            count += size
    return hits / count


def _places(document: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """Positions of the document where the answer stands."""
    starts = (document.unfold(0, len(answer), 1) == answer).all(1).nonzero()
    if not len(starts):
        raise HeadwiseError("an answer does not stand in its document word for word; give facts that do")
    return (starts + torch.arange(len(answer))).flatten()


@measure("retrieval", cost=146)
def measured_retrieval(material: Material, progress: Progress) -> Found:
    """Retrieval scores of query heads."""
    scores = retrieval_scores(model_of(material.subject), material.recalls)
    return {"query_heads_above_0.1": int((scores > 0.1).sum())}, {"retrieval_scores": scores}
