"""One probing forward: what a model's layers hand over, and so how its attention is shaped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from transformers import PreTrainedModel

from headwise.cache.states import States
from headwise.seams.transformers.door import Door, forget
from headwise.seams.transformers.encoder_side import CrossRecorder, both, encoder_side
from headwise.seams.transformers.fingerprint import fingerprint
from headwise.seams.transformers.forward import forward
from headwise.seams.transformers.images import image_token
from headwise.seams.transformers.probe import Asked, Seam, Sighting, attend_once, geometry, ropes
from headwise.shapes import Rope


@runtime_checkable
class TellsLayers(Protocol):
    """A model that knows of its layers what is found out of others: a host."""

    def rotations(self) -> tuple[Rope | None, ...]:
        """How each layer turns the keys that it stores."""

    def exact_numbers(self) -> tuple[int, ...]:
        """By layer, numbers of a row's state that are held in float32 whatever the model's type."""

    def own_cache(self) -> Any:
        """An empty cache of the kind that a forward makes where it is given none."""


class Recorder(Door):
    """A cache for one probing forward: notes what every layer hands over, and computes dense attention."""

    def __init__(self, layers: int) -> None:
        self.windows, self.lending = (None,) * layers, None
        self.states = States()
        self.sightings: list[Sighting | None] = [None] * layers

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, asked: Asked
    ) -> torch.Tensor:
        self.sightings[layer] = Sighting(k[0], v.shape[-1], q.shape[1], asked)
        return attend_once(q, k, v, asked)

    def follow(
        self, layer: int, source: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, asked: Asked
    ) -> torch.Tensor:
        self.sightings[layer] = Sighting(k[0], v.shape[-1], q.shape[1], asked, source)
        return attend_once(q, k, v, asked)


def text_config(model: PreTrainedModel) -> Any:
    """The config of the part that writes text."""
    return text_part(model.config)


def text_part(config: Any) -> Any:
    """Of a config, what is of the part that writes text."""
    found = config.get_text_config(decoder=True)
    return found if hasattr(found, "num_hidden_layers") else getattr(config, "decoder", found)  # T5Gemma has two whole


def text_layers(model: PreTrainedModel) -> int:
    """Layers of the part that writes text; T5's config says it of its encoder, which may have fewer or more."""
    named = ("num_decoder_layers", "decoder_layers") if model.config.is_encoder_decoder else ()
    told = [count for name in named if isinstance(count := getattr(model.config, name, None), int)]
    return int(told[0] if told else text_config(model).num_hidden_layers)


def probe_ids(model: PreTrainedModel, tokens: int) -> torch.Tensor:
    """Some token ids [1, tokens] that the model knows, no two neighbours alike."""
    ids = torch.arange(tokens, device=model.device) * 7 + 3
    return ids[None] % text_config(model).vocab_size


def record(model: PreTrainedModel, recorder: Recorder | None = None, by_itself: str | None = None) -> Seam:
    """What one forward of an attached model shows of it, to a recorder that does not compute its attention where it
    attends by itself, for this reason."""
    config = text_config(model)
    recorder = Recorder(text_layers(model)) if recorder is None else recorder
    ids = probe_ids(model, 16)
    across = CrossRecorder(text_layers(model)) if model.config.is_encoder_decoder else None
    cache = recorder if across is None else both(recorder, across)
    forward(model, cache, torch.full_like(ids, int(ids[0, 0])), **encoder_side(model, 1))
    forget()
    states = [recorder.states.numbers(layer) for layer in range(len(recorder.sightings))]
    shape = geometry(recorder.sightings, states, getattr(config, "max_position_embeddings", None) or 2**31)
    found: tuple[Rope | None, ...] | None
    if isinstance(model, TellsLayers):
        exact = model.exact_numbers()
        shape = replace(shape, layers=tuple(replace(one, exact=n) for one, n in zip(shape.layers, exact, strict=True)))
        found = model.rotations()
    else:
        frequencies = [buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq")]
        found = None if _by_places(config) else ropes(recorder.sightings, frequencies)
    of = fingerprint(model.config.to_dict(), model.named_parameters())
    seam = Seam(shape, found, of, rope_switch(config), by_itself, image_token(model.config))
    return seam if across is None else replace(seam, across=_across(across, of))


def _across(recorder: CrossRecorder, fingerprint: str) -> Seam:
    """What is known of layers of cross-attention; an encoder's keys are not rotated."""
    count = len(recorder.sightings)
    return Seam(geometry(recorder.sightings, (0,) * count, 2**31), (None,) * count, fingerprint)


def _by_places(config: Any) -> bool:
    """Whether keys are rotated by the row and column of an image that they stand at (M-RoPE): a text does not show how
    the tokens of an image, and all that follow it, are rotated."""
    return any("mrope_section" in settings for settings in rope_settings(config))


def rope_switch(config: Any) -> int | None:
    """Tokens beyond which a forward rotates keys by its long factors (longrope); None without them."""
    for settings in rope_settings(config):
        if "longrope" in (settings.get("rope_type"), settings.get("type")):
            named = settings.get("original_max_position_embeddings")
            switch = named or getattr(config, "original_max_position_embeddings", config.max_position_embeddings)
            return int(switch)
    return None


def rope_settings(config: Any) -> list[dict[str, Any]]:
    """What a config says of its rotary embeddings: one entry, or one by kind of layer; empty without any."""
    said = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return [one for one in (said, *said.values()) if isinstance(one, dict)]
