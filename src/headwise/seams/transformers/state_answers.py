"""What layers that pass a state on ask of a Cache: the states so far, and that it takes the new ones."""

from __future__ import annotations

from typing import Any

import torch

from headwise.cache.states import States
from headwise.seams.transformers.answers import Answers


class StateAnswers(Answers):
    """Answers as transformers' own cache of such layers does. `states` hold what is passed on."""

    states: States

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        """The columns [b, channels, width] that a short convolution goes on from, None before the first tokens. A step
        of one token writes the next ones into it."""
        return self.states.get((layer_idx, "conv", state_idx))

    def update_conv_state(
        self,
        conv_states: torch.Tensor,
        layer_idx: int,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Take new columns [b, channels, t]; those before and these."""
        return self.states.extend((layer_idx, "conv", state_idx), conv_states, conv_kernel_size)

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        """The running sum [b, ...] of a layer, None before the first tokens. A step may write the next one into it."""
        return self.states.get((layer_idx, "recurrent", state_idx))

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> torch.Tensor:
        """Take a layer's new running sum [b, ...]."""
        return self.states.set((layer_idx, "recurrent", state_idx), recurrent_states)

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """Whether a layer, by default any, has a state of tokens before."""
        return bool(self.states) if layer_idx is None else layer_idx in self.states.layers
