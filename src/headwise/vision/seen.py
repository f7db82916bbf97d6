"""What a pruner may look at, and reading a prompt with one at work."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from headwise.errors import SessionError
from headwise.pruners import Pruner
from headwise.seams.transformers.encoder import encoder_attention, encoder_keys, image_features
from headwise.seams.transformers.images import of_images
from headwise.seams.transformers.staged import Between, Staged


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture [3, height, width] as a model sees it; what is asked of its encoder is computed once."""

    model: Any
    pixels: Tensor

    @cached_property
    def features(self) -> Tensor:
        """What the decoder is given: [images, width]."""
        return image_features(self.model, self.pixels[None])[0]

    @cached_property
    def attention(self) -> list[Tensor]:
        """By layer of the encoder, its weights [H, images + 1, images + 1]; the [CLS] token comes first."""
        found = [one[0] for one in encoder_attention(self.model, self.pixels[None])]
        if found[0].shape[-1] != len(self.features) + 1:
            raise SessionError(
                f"the encoder has {found[0].shape[-1]} tokens for {len(self.features)} image tokens, so that none of "
                "them is its [CLS] token; use a pruner that looks at the decoder, such as fastv"
            )
        return found

    @cached_property
    def keys(self) -> list[Tensor]:
        """By layer of the encoder, its keys [images + 1, width]; the [CLS] token comes first."""
        return [one[0] for one in encoder_keys(self.model, self.pixels[None])]

    @property
    def looks(self) -> Tensor:
        """How [CLS] looks at the image tokens, by layer, over all heads in the mean: [layers, images]."""
        return torch.stack([one[:, 0, 1:].mean(0) for one in self.attention])


@dataclass(frozen=True, eq=False)
class Seen:
    """Before a layer of the decoder: the picture, the prompt between two layers (`now`), which of its tokens are of the
    image, bool [n] (`image`), and their places in the picture [images] (`places`). seed: of what is random."""

    picture: Picture
    now: Between
    image: Tensor
    places: Tensor
    layers: int
    seed: int = 0

    @property
    def layer(self) -> int:
        """How many layers the prompt has been through."""
        return self.now.layer

    @property
    def weights(self) -> Tensor:
        """The last token's attention to each image token in the layer before, over heads in the mean: [images]."""
        assert self.now.attention is not None, "before the first layer nothing was attended to"
        return self.now.attention.mean(0)[self.image]


@dataclass(frozen=True)
class Read:
    """A prompt as it was read: the logits [vocab] after it, how many image tokens reached each layer, and what goes
    on."""

    logits: Tensor
    counts: tuple[int, ...]
    staged: Staged
    kept: Tensor  # places in the picture of those that reached the last layer


def read(model: Any, ids: Tensor, picture: Picture, pruner: Pruner | None, seed: int = 0) -> Read:
    """Read a prompt of ids [n], whose image tokens stand for the picture, with a pruner at work; None: all stay."""
    image = of_images(model, ids)
    if int(image.sum()) != len(picture.features):
        raise SessionError(
            f"the prompt has {int(image.sum())} image tokens, the picture {len(picture.features)}; write as many"
        )
    with torch.no_grad():
        embeds = model.get_input_embeddings()(ids).clone()
    embeds[image] = picture.features.to(embeds)
    places, counts = torch.arange(int(image.sum())), list[int]()
    staged = Staged(model)

    def choose(now: Between) -> Tensor | None:
        nonlocal image, places
        seen = Seen(picture, now, image, places, len(staged.decoder.layers), seed)
        stay = None if pruner is None or not len(places) else pruner.stay(seen)
        kept = None
        if stay is not None:
            kept = torch.ones_like(image)
            kept[image] = stay
            image, places = image[kept], places[stay]
        counts.append(len(places))
        return kept

    logits = staged.read(embeds, torch.arange(len(ids)), choose)
    return Read(logits, tuple(counts), staged, places)


def written(read_: Read, end: int, most: int) -> list[int]:
    """What is written after a prompt, the best token each time, up to `most` tokens or the token `end`."""
    logits, said = read_.logits, list[int]()
    while len(said) < most and (not said or said[-1] != end):
        said.append(int(logits.argmax()))
        if len(said) < most and said[-1] != end:
            logits = read_.staged.step(said[-1])
    return said


def cost(counts: tuple[int, ...] | list[int], texts: int, geometry: Any, element: int = 4) -> dict[str, int]:
    """What a prompt of `texts` other tokens takes whose layers are reached by `counts` image tokens: `pairs` of queries
    and keys that each head scores, all layers together, and `bytes` of keys and values that are held after it."""
    pairs, held = 0, 0
    for count, layer in zip(counts, geometry.layers, strict=True):
        tokens = count + texts
        pairs += tokens * (tokens + 1) // 2
        held += tokens * layer.kv_heads * (layer.key_width + layer.value_width) * element
    return {"pairs": pairs, "bytes": held}
