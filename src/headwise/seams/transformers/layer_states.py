"""The cache of a host: a state for each layer, whatever its kind, as transformers' `generate` looks at a cache."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from headwise.errors import SessionError
from headwise.layers.layer import LayerState


class StateLayer(CacheLayerMixin):
    """One layer's state, or None before the first token. Only the layer itself makes a new one."""

    is_compileable = False
    is_sliding = False

    def __init__(self) -> None:
        self.state: LayerState | None = None

    @property
    def is_initialized(self) -> bool:  # type: ignore[override]
        """Whether tokens were read."""
        return self.state is not None

    def get_seq_length(self, cache_position: Any = None) -> int:
        """Tokens passed."""
        return 0 if self.state is None else self.state.tokens

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """Key length and offset of a mask."""
        length = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.get_seq_length() + length, 0

    def get_max_length(self) -> int:
        """-1: no limit."""
        return -1

    get_max_cache_shape = get_max_length

    def reset(self) -> None:
        """Begin anew."""
        self.state = None

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Let row i go on as a copy of what row beam_idx[i] was."""
        if self.state is not None:
            self.state = self.state.rows(beam_idx)  # type: ignore[assignment]

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Go on with these rows alone, in this order."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Let every row go on as `repeats` rows, one after the other."""
        if self.state is not None:
            self.reorder_cache(torch.arange(_rows(self.state)).repeat_interleave(repeats))

    def lazy_initialization(self, *told: Any, **named: Any) -> None:
        """Nothing to do: a layer makes its first state."""

    def update(self, *told: Any, **named: Any) -> NoReturn:
        """Refused: a state is no pair of keys and values."""
        raise SessionError("a host's layers make their own states; hand the cache to the host and not to its layers")

    def crop(self, *told: Any) -> NoReturn:
        """Refused, as versions of transformers mean different things by its number."""
        raise SessionError("a host's cache does not crop; use `truncated(tokens)`, or keep a `fork()` from before")


def _rows(state: LayerState) -> int:
    """Batch rows of a state: those of any of its tensors."""
    return next(len(one) for one in vars(state.mix).values() if isinstance(one, torch.Tensor))


class LayerStates(Cache):
    """What `generate` hands from step to step of a host: the states of all its layers."""

    layers: list[StateLayer]  # type: ignore[assignment]

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[StateLayer() for _ in range(layers)])

    @property
    def nbytes(self) -> int:
        """Bytes of all states."""
        return sum(one.state.nbytes for one in self.layers if one.state is not None)

    def fork(self) -> LayerStates:
        """The same states in a cache of their own: a snapshot, which copies nothing, as states are values."""
        other = LayerStates(len(self.layers))
        for layer, own in zip(other.layers, self.layers, strict=True):
            layer.state = own.state
        return other

    def truncated(self, tokens: int) -> LayerStates:
        """A cache without the last `tokens` tokens; refused where a layer has a running state."""
        other = self.fork()
        for layer in other.layers:
            layer.state = None if layer.state is None else layer.state.truncated(tokens)
        return other
