"""Gradients through a whole model in the memory of one layer's activations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch.nn import Module, ModuleList
from torch.utils.checkpoint import checkpoint

from headwise.seams.transformers.cache import PreTrainedModel, attach


@contextmanager
def recomputed(model: PreTrainedModel) -> Iterator[None]:
    """Within, a forward keeps each layer's input alone, and going back computes the layer again (T. Chen et al.,
    Training deep nets with sublinear memory cost, 1604.06174), whatever cache it is given.

    A model whose layers do not lie in one list keeps all activations, as without this.
    """
    layers = decoder_layers(model)
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own shows again


def decoder_layers(model: PreTrainedModel) -> list[Module]:
    """The decoder layers of a model, in order; none where they do not lie in one list."""
    count = len(attach(model).geometry.layers)
    lists = [one for one in model.base_model.modules() if isinstance(one, ModuleList) and len(one) == count]
    return list(lists[0]) if len(lists) == 1 else []
