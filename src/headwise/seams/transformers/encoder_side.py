"""What a model with an encoder is given beside its decoder's tokens when it is looked at, and what listens there."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from headwise.attention import attend
from headwise.forms import Full
from headwise.seams.transformers.answers import Answers
from headwise.seams.transformers.cross_keys import cross_keys
from headwise.seams.transformers.probe import Asked, Sighting

COLUMNS, PADDING = 21, 5  # of the encoder's output, and how many of the last row's are padding


def encoder_side(model: PreTrainedModel, rows: int) -> dict[str, Any]:
    """An input that the encoder reads as text, or an output of random numbers where it reads something else, as a
    forward takes it: padded on the right in the last row. Nothing for a model without an encoder."""
    if not model.config.is_encoder_decoder:
        return {}
    encoder, mask = model.get_encoder(), _mask(model, rows)
    if model.main_input_name == "input_ids":
        return {"encoder_outputs": encoder(_text(model, rows), attention_mask=mask), "attention_mask": mask}
    width = getattr(getattr(encoder, "config", model.config), "hidden_size", None) or model.config.hidden_size
    drawn = torch.randn(rows, COLUMNS, width, generator=torch.Generator().manual_seed(3))
    states = BaseModelOutput(last_hidden_state=drawn.to(model.device, model.dtype))
    return {"encoder_outputs": states, "attention_mask": mask}


def _text(model: PreTrainedModel, rows: int) -> torch.Tensor:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    ids = torch.arange(rows * COLUMNS, device=model.device).view(rows, COLUMNS) * 5 + 3
    return ids % len(weight)


def _mask(model: PreTrainedModel, rows: int) -> torch.Tensor:
    mask = torch.ones(rows, COLUMNS, dtype=torch.int64, device=model.device)
    mask[-1, -PADDING:] = 0
    return mask


class CrossRecorder(Answers, transformers.Cache):  # type: ignore[misc]
    """A cache of cross-attention for one probing forward: notes what every layer hands over."""

    def __init__(self, layers: int) -> None:
        self.windows = (None,) * layers
        self.sightings: list[Sighting | None] = [None] * layers

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Name itself to the attention function, which follows."""
        return cross_keys(key_states, self, layer_idx), value_states

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, live: torch.Tensor | None, asked: Asked
    ) -> torch.Tensor:
        """As in `Holder`, of one row; what comes of it is not looked at."""
        self.sightings[layer] = Sighting(k[0], v.shape[-1], q.shape[1], asked)
        grouped = q[0].unflatten(0, (k.shape[1], -1))
        return attend(grouped, k[0], v[0], Full(), asked.scoring).out.flatten(0, 1)[None]


def both(own: Any, across: Any) -> transformers.EncoderDecoderCache:
    """Two caches as a model with an encoder takes them."""
    return transformers.EncoderDecoderCache(own, across)


def own_pair() -> transformers.EncoderDecoderCache:
    """An empty cache of transformers' that keeps all that it is given, windows or not."""
    return both(DynamicCache(), DynamicCache())
