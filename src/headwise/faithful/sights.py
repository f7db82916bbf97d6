"""Another sight of a prompt's images, which cannot share the first look's cache: image tokens that are others, or
fewer, change the keys and values of all that was read after them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headwise.engine.session import Session
from headwise.errors import SessionError
from headwise.seams.transformers.cache import Cache, PreTrainedModel
from headwise.seams.transformers.forward import cache_argument, forward, padding
from headwise.seams.transformers.images import IMAGE, image_marks, image_token
from headwise.shapes import Mark


class Sight:
    """What `model` says of the same text and other images: the prompt is read once into a cache of its own, under a
    recipe, and then a token at a time.

    rows: the prompt's ids by row, without padding. features: by row, what the decoder is given in the places of image
    tokens, [images, width]. kept: by row, which of them are read, bool [images]; None: all.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        recipe: str,
        rows: Sequence[Tensor],
        features: Sequence[Tensor],
        kept: Sequence[Tensor] | None = None,
    ) -> None:
        self.model, self.recipe = model, recipe
        token = token_of(model)
        self.parts = [
            self._embedded(ids, own, token, None if kept is None else kept[row])
            for row, (ids, own) in enumerate(zip(rows, features, strict=True))
        ]
        marks = [
            mark
            for row, (ids, _) in enumerate(self.parts)
            for mark in _moved(image_marks(ids[None], token, [0], None), row)
        ]
        self.cache = Cache(model, recipe, marks=marks)

    @property
    def tokens(self) -> int:
        """Tokens of the prompt that it reads, all rows together."""
        return sum(len(ids) for ids, _ in self.parts)

    def open(self) -> Tensor:
        """Read the prompt: the logits [b, vocab] after it."""
        longest = max(len(ids) for ids, _ in self.parts)
        embeds = torch.stack([_left_padded(own, longest) for _, own in self.parts])
        left = torch.tensor([longest - len(ids) for ids, _ in self.parts], device=embeds.device)
        columns = torch.arange(longest, device=embeds.device)
        told: dict[str, Tensor] = {}
        if bool(left.any()):
            told["attention_mask"] = (columns >= left[:, None]).long()
            told["position_ids"] = (columns - left[:, None]).clamp(min=0)
        with torch.no_grad():
            held = {cache_argument(type(self.model)): self.cache, "use_cache": True}
            logits: Tensor = self.model(inputs_embeds=embeds, logits_to_keep=1, **told, **held).logits
        return logits[:, -1].float()

    def step(self, newest: Tensor) -> Tensor:
        """Read the newest tokens [b, 1]: the logits [b, vocab] after them."""
        session = self.cache.session
        assert isinstance(session, Session), "it was opened"
        with torch.no_grad():
            told = padding(session, [1] * len(newest), 1)
            logits: Tensor = forward(self.model, self.cache, newest, **told).logits
        return logits[:, -1].float()

    def _embedded(self, ids: Tensor, features: Tensor, token: int, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """The ids [m] of a row that are read, and what the decoder is given for them [m, width]."""
        image = ids == token
        with torch.no_grad():
            embeds = self.model.get_input_embeddings()(ids).clone()
        embeds[image] = features.to(embeds)
        if kept is None:
            return ids, embeds
        stay = ~image
        stay[image] = kept
        return ids[stay], embeds[stay]


def token_of(model: PreTrainedModel) -> int:
    """The id that stands where an image is read."""
    token = image_token(model.config)
    if token is None:
        raise SessionError(f"{type(model).__name__} reads no images; give a vision-language model, or another decoder")
    return token


def _moved(marks: Sequence[Mark], row: int) -> list[Mark]:
    """The same marks in a row."""
    return [Mark(IMAGE, mark.start, mark.end, row) for mark in marks]


def _left_padded(x: Tensor, length: int) -> Tensor:
    return torch.cat((x.new_zeros(length - len(x), x.shape[1]), x))
