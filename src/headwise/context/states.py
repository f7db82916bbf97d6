"""Vectors of texts from a decoder's own states: what its layers come to at the tokens of each, read by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from headwise.bench.job import encode
from headwise.context.asked import refuse_length
from headwise.seams.transformers.cache import PreTrainedModel

Pool = Literal["weighted_mean", "mean", "last"]


@torch.no_grad()
def layer_vectors(model: PreTrainedModel, tokenizer: Any, texts: Sequence[str], pools: Sequence[Pool]) -> torch.Tensor:
    """One vector for each pool and layer of each text, in one forward of all: [pools, texts, layers, width]. The last
    layer's states are those after the final norm. ContextError where a text is longer than the model was trained on."""
    own = [encode(tokenizer, text)[0] for text in texts]
    lengths = torch.tensor([len(ids) for ids in own])
    refuse_length(model, int(lengths.max()))
    ids = torch.nn.utils.rnn.pad_sequence(own, batch_first=True)
    live = torch.arange(ids.shape[1]) < lengths[:, None]
    read = model(ids.to(model.device), attention_mask=live.long().to(model.device), use_cache=False,
                 output_hidden_states=True)  # fmt: skip
    shares = torch.stack([token_shares(live, pool) for pool in pools])[..., None]
    return torch.stack([(layer.float().cpu() * shares).sum(2) for layer in read.hidden_states[1:]], dim=2)


def token_shares(live: torch.Tensor, pool: Pool) -> torch.Tensor:
    """What each token of a text counts, [texts, tokens], where `live [texts, tokens]` tells tokens from the padding
    that follows them. weighted_mean: the i-th counts i; last: the last alone."""
    places = live.cumsum(1) * live
    if pool == "weighted_mean":
        shares = places.float()
    elif pool == "mean":
        shares = live.float()
    else:
        shares = (places == live.sum(1, keepdim=True)).float() * live
    return shares / shares.sum(1, keepdim=True)
