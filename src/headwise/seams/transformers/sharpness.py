"""What early layers make of a text, and how sharply each of them looked at every token of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from headwise.seams.transformers.cache import attach
from headwise.seams.transformers.door import forget
from headwise.seams.transformers.forward import forward
from headwise.seams.transformers.probe import Asked
from headwise.seams.transformers.recorder import Recorder, text_config

BLOCK = 128  # queries whose weights are held at once


class _Entropies(Recorder):
    """Notes the entropy of each query's weights, the mean of the heads, of every layer: [layers, n], in nats."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers)
        self.found: list[torch.Tensor | None] = [None] * layers

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, asked: Asked
    ) -> torch.Tensor:
        grouped, count = q[0].unflatten(0, (k.shape[1], -1)).float(), q.shape[2]
        parts = []
        for start in range(0, count, BLOCK):
            place = torch.arange(start, min(start + BLOCK, count), device=q.device)
            scores = asked.scoring.capped(grouped[:, :, place] @ k[0, :, None].float().mT * asked.scoring.scale)
            back = place[:, None] - torch.arange(count, device=q.device)
            seen = (back >= 0) & (back < (asked.window or count))
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
            parts.append(torch.special.entr(weights).sum(-1).mean((0, 1)))
        self.found[layer] = torch.cat(parts)
        return super().attend(layer, q, k, v, mask, asked)


@torch.no_grad()
def sharpest_states(model: PreTrainedModel, ids: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
    """Of every token of a text ids [n], what that of some layers made of it whose heads looked most sharply from it,
    by the mean entropy of their weights: [n, d], float32. All layers attend."""
    attach(model)
    recorder = _Entropies(text_config(model).num_hidden_layers)
    out = forward(model, recorder, ids[None], output_hidden_states=True)
    forget()
    entropies = torch.stack([one for layer in layers if (one := recorder.found[layer]) is not None])
    states = torch.stack([out.hidden_states[layer + 1][0].float() for layer in layers])
    chosen: torch.Tensor = states[entropies.argmin(0), torch.arange(len(ids), device=states.device)]
    return chosen
