"""A prompt read layer by layer, so that tokens can leave it between two layers, as no forward of a model lets them.

For decoders whose layers take (hidden states, position embeddings): Llama's kind, alone or inside of Llava.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headwise.attention import attend
from headwise.cache.states import States
from headwise.errors import SessionError, UnsupportedModel
from headwise.forms import Causal
from headwise.seams.transformers.cache import followed
from headwise.seams.transformers.door import Door
from headwise.seams.transformers.forward import cache_argument
from headwise.seams.transformers.probe import Asked


@dataclass(frozen=True, eq=False)
class Between:
    """What there is to see of one prompt before its next layer.

    layer: how many layers it has been through. states [n, width]: what goes into the next. positions [n]: true ones.
    attention [H, n]: the weights of the last token in the layer before, neurons [n, m]: what its feed-forward layer's
    last matrix was given; both None before the first layer.
    """

    layer: int
    states: Tensor
    positions: Tensor
    attention: Tensor | None
    neurons: Tensor | None


Choose = Callable[[Between], Tensor | None]  # which tokens stay, bool [n]; None: all


class Staged(Door):
    """One sequence, read by `read` and continued by `step`; each layer keeps keys and values of the tokens that reached
    it. pairs: of queries and keys, by layer, that a prompt's heads have scored."""

    def __init__(self, model: Any) -> None:
        seam = followed(model)
        own = getattr(getattr(model, "model", None), "language_model", None) or model.get_decoder()
        if not all(hasattr(own, name) for name in ("layers", "norm", "rotary_emb")) or any(seam.geometry.windows):
            raise UnsupportedModel(
                f"{type(model).__name__} has no decoder with layers, norm and rotary_emb that attend to everything, "
                "which reading layer by layer takes; give a model of Llava's kind with a Llama decoder"
            )
        self.model, self.decoder, self.geometry = model, own, seam.geometry
        self.windows, self.states = seam.geometry.windows, States()
        self.kinds = tuple(layer.kind for layer in seam.geometry.layers)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.pairs: list[int] = []
        self.next = 0  # the true position of the next token
        self._attention: Tensor | None = None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, asked: Asked) -> Tensor:
        """One layer: q [1, H, t, d] over what it has kept and k [1, h, t, d], v [1, h, t, e] -> [1, H, t, e]."""
        if layer == len(self.keys):
            self.keys.append(k[0])
            self.values.append(v[0])
            self.pairs.append(k.shape[2] * (k.shape[2] + 1) // 2)
        else:
            self.keys[layer], self.values[layer] = (
                torch.cat((held, new[0]), 1) for held, new in ((self.keys[layer], k), (self.values[layer], v))
            )
        grouped = q[0].unflatten(0, (k.shape[1], -1))
        scores = asked.scoring.capped(grouped[:, :, -1:] @ self.keys[layer][:, None].mT * asked.scoring.scale)
        self._attention = scores.softmax(-1).flatten(0, 1)[:, 0]
        return attend(grouped, self.keys[layer], self.values[layer], Causal(), asked.scoring).out.flatten(0, 1)[None]

    def get_seq_length(self, layer_idx: int = 0, cache_position: object = None) -> int:
        """Tokens passed."""
        return self.next

    @torch.no_grad()
    def read(self, embeds: Tensor, positions: Tensor, choose: Choose) -> Tensor:
        """Read a prompt, embeds [n, width] at true positions [n], ascending; the logits [vocab] after it. choose: asked
        before each layer which tokens stay; the last one has to."""
        if self.next:
            raise SessionError("a prompt was read already; give its continuation to `step`, or make a new Staged")
        states, neurons = embeds, None
        for number, layer in enumerate(self.decoder.layers):
            stay = choose(Between(number, states, positions, self._attention, neurons))
            if stay is not None:
                if not bool(stay[-1]):
                    raise SessionError(f"layer {number}: the last token of a prompt cannot leave it; keep it")
                states, positions = states[stay], positions[stay]
            states, neurons = self._through(layer, states, positions)
        self.next = int(positions[-1]) + 1
        return self._logits(states[-1])

    @torch.no_grad()
    def step(self, token: int) -> Tensor:
        """Read one more token; the logits [vocab] after it."""
        device = self.keys[0].device
        states: Tensor = self.model.get_input_embeddings()(torch.tensor([token], device=device))
        for layer in self.decoder.layers:
            states, _ = self._through(layer, states, torch.tensor([self.next], device=device))
        self.next += 1
        return self._logits(states[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values that are held."""
        return sum(one.numel() * one.element_size() for one in (*self.keys, *self.values))

    def _through(self, layer: Any, states: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """One layer: states [n, width] -> the same shape, and what its feed-forward layer's last matrix was given."""
        given: list[Tensor] = []
        handle = layer.mlp.down_proj.register_forward_pre_hook(lambda module, own: given.append(own[0][0]))
        turned = self.decoder.rotary_emb(states[None], positions[None])
        told = {cache_argument(type(layer)): self, "use_cache": True}
        try:
            out = layer(
                states[None], attention_mask=None, position_ids=positions[None], position_embeddings=turned, **told
            )
        finally:
            handle.remove()
        return (out[0] if isinstance(out, tuple) else out)[0], given[0]

    def _logits(self, state: Tensor) -> Tensor:
        logits: Tensor = self.model.get_output_embeddings()(self.decoder.norm(state))
        return logits.float()
