"""What a mix learns that no input changes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


class LearnedTensors(nn.Module):
    """Tensors [heads, ...] by name, which are trained."""

    def __init__(self, first: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.by_name = nn.ParameterDict({name: nn.Parameter(one) for name, one in first.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """They themselves, whatever the input."""
        return dict(self.by_name.items())
