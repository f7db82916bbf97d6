"""Centres of clusters follow the queries and keys that lie nearest to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headwise.errors import RecipeError
from headwise.knobs import ShareBelowOne
from headwise.layers.base import repeated
from headwise.layers.codes import nearest
from headwise.layers.layer import AttentionLayer
from headwise.layers.norms import wide
from headwise.layers.sparse.clusters import CENTRES
from headwise.models.hooking import Attached, Hook, attention_layers
from headwise.training_hooks import HookCard, training_hook


@training_hook("move_centres")
@dataclass(frozen=True)
class MoveCentres(Hook):
    """After each step a centre of `clusters` is moved towards the mean direction of the keys that lie nearest to it.

    keep: share of a centre that stays.
    """

    keep: ShareBelowOne = 0.99
    card: ClassVar[HookCard] = HookCard(
        "Moving centres of clusters",
        "Efficient Content-Based Sparse Attention with Routing Transformers, 2003.05997, section 4.1",
        "clusters are where keys are",
        "mu_c <- keep mu_c + (1 - keep) mean of k_j / |k_j| over j nearest to c, of length 1",
        "none: leave it out",
        systems=(42,),
        deviations="keys alone move centres; 0.99, where the paper has 0.999 of far longer trainings",
    )

    def attach(self, model: nn.Module) -> Moving:
        layers = [one for one in attention_layers(model) if hasattr(one.gates, CENTRES)]
        if not layers:
            raise RecipeError("move_centres: no layer of the host has clusters; give one the pattern clusters(8)")
        return Moving(layers, self.keep)


class Moving(Attached):
    """`move_centres` at work. `keys` are those of the newest forward, by layer."""

    def __init__(self, layers: list[AttentionLayer], keep: float) -> None:
        self.layers, self.keep = layers, keep
        self.keys: dict[int, Tensor] = {}
        self.handles = [one.register_forward_hook(self._hear(place)) for place, one in enumerate(layers)]

    def _hear(self, place: int) -> Any:
        def hear(layer: AttentionLayer, given: tuple[Any, ...], made: object) -> None:
            with torch.no_grad():
                self.keys[place] = layer.streams(*given)[0].k

        return hear

    @torch.no_grad()
    def stepped(self) -> None:
        for place, layer in enumerate(self.layers):
            known = getattr(layer.gates, CENTRES)
            k = F.normalize(wide(repeated(self.keys[place], len(known))), dim=-1)
            own = F.one_hot(nearest(k, known)[..., 0], known.shape[2]).to(k.dtype)
            summed = torch.einsum("bhnc,bhnd->hcd", own, k)[:, None]
            mean = summed / own.sum((0, 2))[:, None, :, None].clamp_min(1)
            moved = F.normalize(self.keep * known + (1 - self.keep) * mean, dim=-1)
            known.copy_(torch.where(summed.abs().sum(-1, keepdim=True) > 0, moved, known))

    def finish(self) -> None:
        for handle in self.handles:
            handle.remove()
