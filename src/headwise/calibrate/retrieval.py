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


TAIL = 32  # tokens of a document read with each question, so that question and answer are a prompt, however short


@dataclass(frozen=True, eq=False)
class _Latest(Observer):
    """Hands the attention [h, g, window, n] of the last `window` queries of a document over, by layer."""

    needs = frozenset({"keys", "queries"})
    window: int
    seen: dict[int, torch.Tensor] = field(default_factory=dict)

    def look(self, view: View) -> None:
        if self.ends(view):
            self.seen[view.layer] = view.observe(self.window)


def last_attention(model: PreTrainedModel, cache: Cache, ids: torch.Tensor, window: int) -> torch.Tensor:
    """Attention [layers, kv_heads, g, window, n] of the last `window` queries of what `cache` holds and `ids [1, t]`,
    more than 16 tokens that are read at once. The cache goes on with them.

    Raises HeadwiseError for a model with sliding layers, which hold no heads that could retrieve.
    """
    latest = _Latest(window, tokens=cache.get_seq_length() + ids.shape[1])
    with watching(cache, latest):
        prefill(model, cache, ids, None)
    layers = cache.seam.geometry.layers
    if len(latest.seen) < layers:
        missing = sorted(set(range(layers)) - set(latest.seen))
        raise HeadwiseError(f"layers {missing} have sliding windows; retrieval heads are told for full layers only")
    return torch.stack([latest.seen[layer] for layer in range(layers)])
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
