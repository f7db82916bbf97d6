"""How a query and a key become a score."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headwise.errors import HeadwiseError


@dataclass(frozen=True)
class Scoring:
    """Scores are softcap * tanh(q . k * scale / softcap), and q . k * scale where softcap is None.

    The cap is that of Gemma 2 (arXiv 2408.00118, section 2). Their softmax weighs the values. Raises HeadwiseError for
    a cap that is not positive.
    """

    scale: float
    softcap: float | None = None

    def __post_init__(self) -> None:
        if self.softcap is not None and not self.softcap > 0:
            raise HeadwiseError(f"softcap={self.softcap} must be positive; None means no cap")

    def capped(self, scaled: Tensor) -> Tensor:
        """Scores from products `[...]` that were scaled already."""
        return scaled if self.softcap is None else self.softcap * torch.tanh(scaled / self.softcap)
