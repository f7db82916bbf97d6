"""Which KV heads retrieve: what their attention does while the model copies from its context, in one prompt each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from headwise.attention.view import View
from headwise.calibrate.look import Observer, watched
from headwise.calibrate.material import Material, Recall, check_recalls
from headwise.calibrate.measures import Found, measure
from headwise.errors import HeadwiseError
from headwise.geometry import Geometry
from headwise.seams.transformers.cache import PreTrainedModel, attach
from headwise.seams.transformers.drive import Progress, prefill

TAIL = 32  # tokens of a document read with each question, so that question and answer are a prompt, however short


@dataclass(frozen=True, eq=False)
class Latest(Observer):
    """Notes, by layer, what `of` makes of the attention [h, g, window, n] of the last `window` queries of a piece:
    [h, g, ...]."""

    needs = frozenset({"keys", "queries"})
    window: int
    of: Callable[[torch.Tensor], torch.Tensor]
    seen: dict[int, torch.Tensor] = field(default_factory=dict)

    def look(self, view: View) -> None:
        self.seen[view.layer] = self.of(view.observe(min(self.window, view.queries.shape[2])))

    def told(self, geometry: Geometry) -> torch.Tensor:
        """What was noted last of each layer, [layers, KV heads, g, ...]. Raises HeadwiseError for a model with sliding
        layers, which hold no heads that could retrieve."""
        layers = range(len(geometry.layers))
        if missing := sorted(set(layers) - set(self.seen)):
            raise HeadwiseError(f"layers {missing} have sliding windows; retrieval heads are told for full layers only")
        return geometry.gathered([self.seen[layer] for layer in layers])


def retrieval_scores(model: PreTrainedModel, recalls: Sequence[Recall]) -> torch.Tensor:
    """Retrieval score, float32 [layers, kv_heads, g], of every query head (2404.15574, section 2).

    The share of answer tokens at whose copying the head's most attended token is the same token, inside the needle:
    a place of the document where the answer stands as a whole. Answers that stand nowhere are refused.
    """
    check_recalls(recalls)
    attach(model).geometry.size("g")  # refused before any work
    hits, count = torch.zeros(()), 0
    for recall in recalls:
        latest = Latest(max(answer.shape[1] for _, answer in recall.asked), lambda attention: attention.argmax(-1))
        cache, ids = watched(model, latest), recall.ids[0]
        document, tail = recall.ids[:, :-TAIL], recall.ids[:, -TAIL:]
        if document.shape[1]:
            prefill(model, cache, document)
        for question, answer in recall.asked:
            size, places = answer.shape[1], _places(ids, answer[0])
            prefill(model, cache, torch.cat((tail, question, answer[:, :-1]), dim=1), None)
            cache.truncate(document.shape[1])
            best = latest.told(cache.seam.geometry)[..., -size:]  # [layers, h, g, size]
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


def echo_and_induction(
    model: PreTrainedModel, tokens: int = 256, repeats: int = 4, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two scores, float32 [layers, kv_heads, g] each, on random tokens repeated (2407.15891, section 3).

    The attention of the last repeat's queries to the same token one repeat earlier (echo), and to the token after that
    (induction), averaged over queries. No text is needed.
    """
    attach(model).geometry.size("g")  # refused before any work
    generator = torch.Generator().manual_seed(seed)
    block = torch.randint(model.config.vocab_size, (1, tokens), generator=generator)
    earlier = tokens * (repeats - 2)

    def of(attention: torch.Tensor) -> torch.Tensor:
        lines = [attention.diagonal(offset=earlier + later, dim1=-2, dim2=-1)[..., :tokens] for later in (0, 1)]
        return torch.stack([line.mean(-1) for line in lines], dim=-1)

    cache = watched(model, latest := Latest(tokens, of))
    prefill(model, cache, block.repeat(1, repeats), None)
    echo, induction = latest.told(cache.seam.geometry).unbind(-1)
    return echo.contiguous(), induction.contiguous()


@measure("retrieval", cost=146)
def measured_retrieval(material: Material, progress: Progress) -> Found:
    """Retrieval scores of query heads."""
    scores = retrieval_scores(material.model, material.recalls)
    return {"query_heads_above_0.1": int((scores > 0.1).sum())}, {"retrieval_scores": scores}


@measure("induction", cost=8)
def measured_induction(material: Material, progress: Progress) -> Found:
    """Echo and induction scores of query heads (RazorAttention)."""
    echo, induction = echo_and_induction(material.model)
    return {}, {"razor.echo": echo, "razor.induction": induction}
