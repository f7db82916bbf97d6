"""Decoder layers whose text also reads visual tokens that are not in the sequence (Slow-Fast, Shi et al. 2025).

Written for decoders whose layers have `self_attn` with `q_proj`, `k_proj` and `o_proj` (Llama, Qwen2, Mistral), alone
or inside of Llava.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headwise.errors import UnsupportedModel


class SlowReader(nn.Module):
    """What one layer reads slow tokens by: keys and values of its own, and a gate that is shut at first."""

    def __init__(self, attention: Any, width: int) -> None:
        super().__init__()
        self.head_dim: int = attention.head_dim
        read, shared = attention.o_proj.in_features, attention.k_proj.out_features
        self.keys_values = nn.Linear(width, 2 * shared)
        self.gate = nn.Linear(read, 1)
        self.opened = nn.Parameter(torch.zeros(1))

    def forward(self, read: Tensor, queries: Tensor, slow: Tensor) -> Tensor:
        """What the heads read [b, t, width], with what they read of slow tokens [b, s, width] by the same queries
        [b, t, width] added, times tanh(W read) and the scalar."""
        q = queries.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        k, v = (
            one.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for one in self.keys_values(slow).chunk(2, dim=-1)
        )
        found = F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)
        return read + self.opened * torch.tanh(self.gate(read)) * found


class SlowTokens(nn.Module):
    """Readers of some layers of a model's decoder; the model itself is not changed.

    layers: their numbers. UnsupportedModel where the decoder has no such layer, or layers of another kind.
    """

    def __init__(self, model: Any, layers: Sequence[int]) -> None:
        super().__init__()
        own = getattr(getattr(model, "model", None), "language_model", None) or model.get_decoder()
        found = [getattr(own.layers[at], "self_attn", None) if 0 <= at < len(own.layers) else None for at in layers]
        if not layers or not all(hasattr(one, "q_proj") and hasattr(one, "o_proj") for one in found):
            raise UnsupportedModel(
                f"{type(model).__name__} has {len(own.layers)} decoder layers, and slow tokens were to be read in "
                f"{list(layers)}, through q_proj and o_proj; name layers that it has, of a model of Llama's kind"
            )
        self._attentions: tuple[Any, ...] = tuple(found)
        self.readers = nn.ModuleList(SlowReader(one, model.get_input_embeddings().embedding_dim) for one in found)

    @contextmanager
    def reading(self, slow: Tensor, text: Tensor) -> Iterator[None]:
        """Within, tokens that are of the `text`, bool [b, n], read the slow tokens [b, s, width] too."""
        with ExitStack() as hooks:
            for attention, reader in zip(self._attentions, self.readers, strict=True):
                queries: list[Tensor] = []

                def note(module: Any, given: Any, out: Tensor, queries: list[Tensor] = queries) -> None:
                    queries[:] = [out]

                def add(
                    module: Any, given: tuple[Tensor], reader: Any = reader, queries: list[Tensor] = queries
                ) -> tuple[Tensor]:
                    own = text[:, -given[0].shape[1] :, None]
                    return (torch.where(own, reader(given[0], queries[0], slow), given[0]),)

                for handle in (
                    attention.q_proj.register_forward_hook(note),
                    attention.o_proj.register_forward_pre_hook(add),
                ):
                    hooks.callback(handle.remove)
            yield
