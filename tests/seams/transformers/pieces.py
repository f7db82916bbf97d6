"""What tests of families say alike: random tokens, and logits of a text that is read in pieces."""

from __future__ import annotations

import torch
import transformers as t

from headwise.seams.transformers.forward import forward


def ids_of(count: int, rows: int = 1) -> torch.Tensor:
    return torch.randint(1, 128, (rows, count), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: t.PreTrainedModel, cache: t.Cache, pieces: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([forward(model, cache, piece).logits for piece in pieces], dim=1)
