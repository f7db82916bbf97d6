"""TidalDecode: two layers read everything and choose; the layers after each read what it chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.forms import Causal, Where
from headwise.knobs import NonNegative
from headwise.methods.select import Select, positions_of
from headwise.registry import Card, register


@register("select", "tidal")
@dataclass(frozen=True)
class TidalDecode(Select):
    """budget: share of the stored tokens or number of tokens read per step. sinks, recent: tokens always read.

    skip_layers: first layers that read everything; the one after them is the first that chooses.
    again_layer: the layer that chooses again, about 0.4 of the depth.
    """

    skip_layers: NonNegative = 2
    again_layer: NonNegative = 13

    needs = frozenset({"keys", "queries", "memory"})
    noted = {"chosen": "int n"}
    card = Card(
        title="TidalDecode",
        paper="TidalDecode: Fast and Accurate LLM Decoding with Position Persistent Sparse Attention, 2410.05076",
        systems=(245,),
        phase="decode",
        query_aware=True,
        forgets="nothing for good: most layers ignore what two layers did not attend to",
        deviations="one choice per KV head, by the mean weight over its query group; refused where a head has no "
        "counterpart of its number in the layer that chooses (fewer heads, a window, another selection)",
    )

    def chooser(self, layer: int) -> int:
        """The layer whose choice `layer` reads; of the first layers, which read everything, their own."""
        if layer <= self.skip_layers:
            return layer
        return self.again_layer if self.skip_layers < self.again_layer <= layer else self.skip_layers

    def remember(self, view: View) -> Mapping[str, Sequence[torch.Tensor]]:
        """In the layers that choose, the tokens of largest weight."""
        if view.layer < self.skip_layers or self.chooser(view.layer) != view.layer:
            return {}
        return {"chosen": positions_of(view, self.best(view, self.weights(view)))}

    def select(self, view: View) -> Where:
        """Everything in the first layers and those that choose, else what was chosen last."""
        chooser = self.chooser(view.layer)
        chosen = view.memory.recall("chosen", chooser) if chooser < view.layer else None
        return Causal() if chosen is None else self.again(view, chosen, view.seen)

    def plain(self, view: View) -> Where:
        """The same, entry by entry; everything where nothing was chosen yet."""
        choosers = [one for one in (self.skip_layers, self.again_layer) if one >= self.skip_layers]
        earlier = [one for one in choosers if one < view.layer]
        chosen = view.memory.recall("chosen", max(earlier)) if earlier and view.layer not in choosers else None
        return Causal() if chosen is None else self.plain_again(view, chosen, view.seen)
