"""What a head writes, read from weights: which tokens it makes more likely when it attends to a token.

A token's embedding goes through the layer's own norm and value projection, the head's part of the output projection,
and the model's final norm and output matrix: MAPS's map M = E W_VO U (arXiv 2412.11965, section 3), a row at a time.
Each step is done by the model itself, with hooks that hand it the embedding or the head's output in place of a hidden
state, so that it holds for whatever a layer is made of. Norms behind attention, as in Gemma's layers, are left out.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch

from headwise.calibrate.layerwise import decoder_layers
from headwise.calibrate.measures.outputs import output_modules
from headwise.calibrate.subject import model_of
from headwise.errors import UnsupportedModel
from headwise.observe import LayerAttention, Subject
from headwise.seams.transformers.beside import Head, check_heads


class Vocabulary:
    """The maps of a model's heads over some tokens, `ids [t]`: their embeddings are followed once, for all heads."""

    @torch.no_grad()
    def __init__(self, subject: Subject, ids: torch.Tensor) -> None:
        self.subject, self.ids = subject, ids.to(subject.device)
        self.layers = decoder_layers(model_of(subject))
        if not self.layers:
            raise UnsupportedModel("the decoder layers do not lie in one list: no hidden state can be handed in")
        self.outputs = output_modules(subject)
        self.values: dict[int, torch.Tensor] = {}
        embedded: list[torch.Tensor] = []

        def enter(_: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            embedded.append(inputs[0])  # of the first layer these are the embeddings
            return (embedded[0], *inputs[1:])

        def attention(one: LayerAttention) -> torch.Tensor:
            self.values[one.layer] = one.v[0]
            return _nothing(one)

        with ExitStack() as hooks:
            for layer in self.layers:
                hooks.callback(layer.register_forward_pre_hook(enter).remove)
            subject.hidden(self.ids[None], torch.tensor([0]), attention)

    @torch.no_grad()
    def written(self, head: Head) -> torch.Tensor:
        """Logits [t, vocabulary] that the head writes for each token that it attends to."""
        check_heads(self.subject.geometry, [head])
        layer, own = head
        shape = self.subject.geometry.layers[layer]
        values = self.values[layer][own // shape.group]
        read = values.new_zeros(len(self.ids), shape.query_heads, shape.value_width)
        project = self.outputs[layer]
        nothing = project(read.flatten(1))
        read[:, own] = values
        state = (project(read.flatten(1)) - nothing)[None]

        def leave(_: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            return (state, *output[1:]) if isinstance(output, tuple) else state

        with ExitStack() as hooks:
            hooks.callback(self.layers[-1].register_forward_hook(leave).remove)
            return self.subject.logits(self.ids[None], torch.arange(len(self.ids)), _nothing).float()


def _nothing(one: LayerAttention) -> torch.Tensor:
    """What a layer is given in place of attention where nobody looks at it."""
    return one.q.new_zeros(*one.q.shape[:3], one.v.shape[3])
