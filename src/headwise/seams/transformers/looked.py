"""What is looked at of a model that is converted: what goes into its attention layers, over texts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

AT_ONCE = 8  # texts that are read in one forward


@dataclass(frozen=True, eq=False)
class Looked:
    """A model, and texts [texts, tokens] for it to read."""

    model: PreTrainedModel
    texts: Tensor

    @cached_property
    @torch.no_grad()
    def moments(self) -> list[Tensor]:
        """By layer, E[x x^T] [width, width] of what goes into attention, in float64."""
        width = self.model.config.hidden_size
        found = [torch.zeros(width, width, dtype=torch.float64) for _ in range(self.model.config.num_hidden_layers)]

        def heard(layer: int) -> Any:
            def hook(module: Any, args: Any, given: dict[str, Tensor]) -> None:
                x = given["hidden_states"].flatten(0, 1).double()
                found[layer] += x.T @ x

            return hook

        layers = [one.self_attn for one in self.model.get_decoder().layers]
        handles = [one.register_forward_pre_hook(heard(i), with_kwargs=True) for i, one in enumerate(layers)]
        try:
            for ids in self.texts.split(AT_ONCE):
                self.model(input_ids=ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return [one / self.texts.numel() for one in found]
