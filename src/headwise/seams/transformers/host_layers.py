"""Layers of a host over a headwise cache: what a layer attends to lies in the cache's pages, by a plan, and a running
state is passed on by it as those of other models' mixing layers are.

A state's tensors are passed on one by one, in their order; whole numbers, which are segments, as float64, that holds
them exactly in as many bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from headwise.errors import UnsupportedModel
from headwise.forms import Scoring
from headwise.layers.base import State
from headwise.layers.layer import AttentionLayer, LayerState
from headwise.seams.transformers.door import Door
from headwise.seams.transformers.probe import Asked


@dataclass(frozen=True)
class Reading:
    """One forward of a host over a headwise cache, which begins after `start` tokens.

    segments [batch, tokens]: of the new tokens, padding apart. mask [batch, tokens so far]: 0 at padding, or None.
    positions [batch, tokens]: None counts on from the start.
    """

    cache: Door
    start: int
    segments: Tensor
    mask: Tensor | None
    positions: Tensor | None

    def layer(self, index: int, layer: AttentionLayer, x: Tensor) -> Tensor:
        """What a layer makes of `x [batch, tokens, width]`; UnsupportedModel for one that neither attends by plain
        softmax nor keeps a state of constant size."""
        attends = layer.attends
        if layer.sentence.mix is None and not attends:
            raise UnsupportedModel(
                f"layer {index} of the host, '{layer.sentence}', weighs pairs of tokens otherwise than plain softmax "
                "attention, which a headwise cache does not follow; leave the cache out"
            )
        before = self._before(index, layer, attends)
        if not attends:
            out, after = layer(x, before, self.segments, self.positions)
            self._pass_on(index, after.tensors)
            return out
        streams, project = layer.streams(x, before, self.segments, self.positions)
        self._pass_on(index, [] if project is None else project.tensors)
        q, k, v = streams.q.to(streams.k.dtype), streams.k, streams.v
        if streams.shared:  # a latent lies behind the channels that are turned
            q, k = (one.roll(-streams.shared, dims=-1) for one in (q, k))
            v = k[..., k.shape[-1] - streams.shared :]
        asked = Asked(Scoring(streams.scale), None, latent=bool(streams.shared))
        read = self.cache.attend(index, q, k, v, self.mask, asked)
        return layer.out(layer.project.finish(read, x), x)

    def _before(self, index: int, layer: AttentionLayer, attends: bool) -> LayerState | None:
        """The layer's state, without the pairs of one that attends; None before the first token."""
        if not self.start:
            return None
        skeleton = layer.skeleton()
        held = self._held(index, skeleton.project.tensors if attends and skeleton.project else skeleton.tensors)
        project = None if skeleton.project is None else skeleton.project.with_tensors(held)
        return LayerState(project, State() if attends else skeleton.mix.with_tensors(held), self.start)

    def _held(self, index: int, like: list[Tensor]) -> Iterator[Tensor]:
        """The tensors that the layer passed on, of the types and widths of these."""
        for place, one in enumerate(like):
            found = self.cache.get_recurrent_state(index, place)
            if found is None:
                raise UnsupportedModel(f"layer {index} has passed no state on after {self.start} tokens")
            yield found.to(one.dtype).view(len(found), *one.shape[1:])

    def _pass_on(self, index: int, tensors: list[Tensor]) -> None:
        for place, one in enumerate(tensors):
            wide = one.double() if not one.is_floating_point() else one
            self.cache.update_recurrent_state(wide.flatten(1) if wide.dim() > 1 else wide[:, None], index, place)


def begin(cache: Door, segments: Tensor, mask: Tensor | None, positions: Tensor | None) -> Reading:
    """A forward over this cache. segments and mask as `Reading` has them."""
    padded = None if mask is None or bool((mask != 0).all()) else mask != 0
    return Reading(cache, cache.get_seq_length(), segments, padded, positions)
