"""Which KV heads retrieve: what their attention does while the model copies from its context, in one prompt each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from headwise.attention.view import View
from headwise.calibrate.heads import Recall, check_recalls
from headwise.engine.drive import prefill
from headwise.engine.hf import Cache, PreTrainedModel
from headwise.errors import HeadwiseError
from headwise.methods.evict import Evict
from headwise.recipe import Recipe


@dataclass(frozen=True)
class Observer(Evict):
    """Evicts nothing; hands the attention of the last `window` queries of a prompt over, by layer.

    seen: filled with attention [h, g, window, n] of every layer.
    """

    window: int = 1
    seen: dict[int, torch.Tensor] = field(default_factory=dict, compare=False)

    notes = 1
    needs = frozenset({"keys", "queries", "notes"})

    def note(self, view: View) -> torch.Tensor:
        """Takes the attention; writes nothing down."""
        self.seen[view.layer] = view.observe(self.window)
        return view.notes


def last_attention(model: PreTrainedModel, ids: torch.Tensor, window: int) -> torch.Tensor:
    """Attention [layers, kv_heads, g, window, n] of the last `window` queries of the prompt `ids [1, n]`.

    Raises HeadwiseError for a model with sliding layers, which hold no heads that could retrieve.
    """
    observer = Observer(window=window)
    cache = Cache(model, Recipe(evict=observer))
    prefill(model, cache, ids, None)
    layers = cache.seam.geometry.layers
    if len(observer.seen) < layers:
        missing = sorted(set(range(layers)) - set(observer.seen))
        raise HeadwiseError(f"layers {missing} have sliding windows; retrieval heads are told for full layers only")
    return torch.stack([observer.seen[layer] for layer in range(layers)])


def retrieval_scores(model: PreTrainedModel, recalls: Sequence[Recall]) -> torch.Tensor:
    """Retrieval score, float32 [layers, kv_heads, g], of every query head (2404.15574, section 2).

    The share of answer tokens at whose copying the head's most attended token is the same token, inside the needle:
    a place of the document where the answer stands as a whole. Answers that stand nowhere are refused.
    """
    check_recalls(recalls)
    hits, count = torch.zeros(()), 0
    for recall in recalls:
        for question, answer in recall.asked:
            size, places = answer.shape[1], _places(recall.ids[0], answer[0])
            ids = torch.cat((recall.ids, question, answer[:, :-1]), dim=1)
            best = last_attention(model, ids, size).argmax(-1)  # [layers, h, g, size]
            inside = torch.isin(best, places)
            hits = hits + (inside & (ids[0][best] == answer[0])).float().sum(-1)
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
    generator = torch.Generator().manual_seed(seed)
    block = torch.randint(model.config.vocab_size, (1, tokens), generator=generator)
    attention = last_attention(model, block.repeat(1, repeats), tokens)
    earlier = torch.arange(tokens) + tokens * (repeats - 2)
    return (
        attention.diagonal(offset=int(earlier[0]), dim1=-2, dim2=-1)[..., :tokens].mean(-1),
        attention.diagonal(offset=int(earlier[0]) + 1, dim1=-2, dim2=-1)[..., :tokens].mean(-1),
    )
