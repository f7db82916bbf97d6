"""AKI's mask (Wang et al., arXiv 2503.02597): an image that comes before its question is read with it in view."""

from __future__ import annotations

import torch
from torch import Tensor

from headwise.errors import SessionError


def mutual_mask(image: Tensor, question: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """What a model is given as `attention_mask` [b, 1, n, n] for prompts with image tokens `image` and questions on
    them `question`, both bool [b, n]: 0 where a query sees a key, else the least number of `dtype`.

    It is the causal mask but for one rectangle: queries of an image also see the keys of a question that follows it.
    What is written after the question stays hidden from all before it. SessionError where a token is of both.
    """
    if image.shape != question.shape or bool((image & question).any()):
        raise SessionError(
            f"{int((image & question).sum()) if image.shape == question.shape else 'all'} tokens are of an image and "
            f"of a question, of shapes {list(image.shape)} and {list(question.shape)}; mark each token once"
        )
    n = image.shape[1]
    seen = torch.ones(n, n, dtype=torch.bool, device=image.device).tril() | (image[:, :, None] & question[:, None])
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
