"""What a lens may ask of one layer's attention, whatever host it is of."""

from __future__ import annotations

from typing import Protocol

import torch


class Sight(Protocol):
    """One layer's attention over what a host reads, H query heads in their order, m queries over n keys. In a decoder
    over its own text both are the same tokens."""

    @property
    def places(self) -> torch.Tensor:
        """The places of the queries, int64 [m]: 0, 1, 2, ..."""

    @property
    def earlier(self) -> torch.Tensor:
        """Where each query's token stood last before, int64 [m]; -1 for one that is new."""

    @property
    def entropy(self) -> torch.Tensor:
        """Of each query's attention [H, m], in nats."""

    @property
    def distance(self) -> torch.Tensor:
        """How far each query looks in the mean, [H, m], over the keys that have a place: in tokens, or, of a picture,
        in patches."""

    @property
    def on_delimiters(self) -> torch.Tensor:
        """The share of each query's attention on delimiters, [H, m]."""

    def to(self, keys: torch.Tensor) -> torch.Tensor:
        """The probability [H, m] that each query gives to one key, that at the place `keys [m]`; 0 for a key that it
        does not see, and for places below 0."""
