"""Decoding steps in as few calls as can be: one word for a whole model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch

from headwise.compiled.decoder import decoder_parts
from headwise.compiled.linear import stream_linears
from headwise.compiled.packed import pack_linears
from headwise.kernels.native.library import unusable
from headwise.seams.transformers.cache import PreTrainedModel, followed
from headwise.seams.transformers.compiled import CompiledLayer, restore_layers
from headwise.seams.transformers.trial import seen_layers, try_chain, try_layer


@dataclass(frozen=True)
class Fast:
    """What `fast` did: decoder layers whose steps are compiled, of how many; linear layers that stream, and those whose
    weights are packed; why other decoder layers stay as they are, with their number; and why compiled ones are computed
    one by one, if not in one call."""

    compiled: int
    layers: int
    linears: int
    packed: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    apart: str = ""

    def __str__(self) -> str:
        packed = f", {self.packed} are packed" if self.packed else ""
        lines = [
            f"{self.compiled} of {self.layers} decoder layers are compiled, {self.linears} linear layers stream{packed}"
        ]
        lines += [f"{count} stay as they are: {why}" for why, count in self.reasons.items()]
        return "\n".join([*lines, *([f"compiled ones are computed one by one: {self.apart}"] if self.apart else [])])


def fast(model: PreTrainedModel, weights: str | None = None) -> Fast:
    """Let decoding steps over a headwise cache take all decoder layers in one native call; returns what was done.

    A step is 1 to 64 rows, tokens times batch rows, on the CPU in bfloat16 or float32, without gradients. Where a
    step's layers do more than to read what they store, such as to select of it, each takes two calls with attention
    between them. Of more rows, a prompt, the products are torch's and all that lies between them is native. Everything
    else, and a layer with hooks on its parts, goes the model's own way.

    Layers keep their weights and names; one that is built in a way that is not known, or does not compute the same on
    random hidden states, stays as it is. All linear layers are streamed too (`stream_linears`), and the model is
    attached (`attach`); `detach` puts the layers back. Without native kernels nothing is changed, and the reason says
    so.

    weights: "int8" or "int4" packs the linear layers' weights for good, with or without native kernels
    (`compiled/packed.py`): half or a third of their bytes, another model by what rounding takes. Such a model can no
    longer be saved or trained.
    """
    followed(model)
    restore_layers(model)
    packed = 0 if weights is None else pack_linears(model, weights)
    linears = 0 if unusable() else stream_linears(model)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            seen = seen_layers(model)
            reasons = Counter(unusable() or try_layer(one, decoder_parts) for one in seen)
            compiled = [one.layer for one in seen if isinstance(one.layer, CompiledLayer)]
            apart = try_chain(model, compiled) if compiled else ""
    finally:
        model.train(training)
    del reasons[""]
    return Fast(len(compiled), len(seen), linears, packed, dict(reasons), apart)
