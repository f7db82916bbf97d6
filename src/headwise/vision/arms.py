"""The ways in which the judge lets a vision-language model answer: as it is, pruned, steered, or by a decoder; and what
each is compared with, the same with chance in place of its idea."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch import Tensor

from headwise.decoders import DECODERS, Decoder, decoder
from headwise.faithful.decoders.causalmm import CausalMm
from headwise.faithful.decoders.conscious_gaze import ConsciousGaze
from headwise.faithful.decoders.damro import Damro
from headwise.faithful.looks import Looks
from headwise.faithful.sights import Sight
from headwise.pruners import PRUNERS, Pruner, pruner
from headwise.seams.transformers.cache import Cache
from headwise.seams.transformers.encoder import image_features
from headwise.seams.transformers.forward import forward
from headwise.seams.transformers.images import of_images
from headwise.shapes import Mark
from headwise.vision.pruners.core_matching import CoreMatching
from headwise.vision.pruners.zero_tprune import ZeroTPrune
from headwise.vision.questions import Item
from headwise.vision.seen import Picture, Seen, cost, read
from headwise.vision.sinks import SINK, found, marks_of


@dataclass
class Answers:
    """Of each question, the log-probabilities [vocab] of the answer's word; of pruned ones the image tokens by layer,
    the places that reached the last layer, and what the prompt took."""

    logs: list[Tensor]
    counts: list[tuple[int, ...]] = field(default_factory=list)
    kept: list[list[int]] = field(default_factory=list)
    costs: list[dict[str, int]] = field(default_factory=list)


def answers(model: Any, sentence: str, items: Sequence[Item]) -> Answers:
    """What an arm makes of questions: of a control's name, a pruner, a decoder, or a recipe; "" is the model itself."""
    made = CONTROLS.get(sentence, sentence)
    if isinstance(made, str) and made.partition("(")[0] in PRUNERS.all():
        made = pruner(made)
    elif isinstance(made, str) and made.partition("(")[0] in DECODERS.all():
        made = decoder(made)
    if isinstance(made, Pruner):
        return _pruned(model, made, items)
    logs: list[Tensor] = [torch.empty(0)] * len(items)
    for places in _alike(items):
        own = [items[at] for at in places]
        rows = _decoded(model, made, own) if isinstance(made, Decoder) else _read(model, made, own)
        for at, row in zip(places, rows, strict=True):
            logs[at] = row
    return Answers(logs)


def _alike(items: Sequence[Item]) -> list[list[int]]:
    """The numbers of questions with prompts of one length together, so that a batch needs no padding."""
    lengths: dict[int, list[int]] = {}
    for number, item in enumerate(items):
        lengths.setdefault(len(item.ids), []).append(number)
    return [own[first : first + BATCH] for own in lengths.values() for first in range(0, len(own), BATCH)]


BATCH = 32


def _stacked(items: Sequence[Item]) -> tuple[Tensor, Tensor]:
    return torch.stack([one.ids for one in items]), torch.stack([one.pixels for one in items])


def _pruned(model: Any, made: Pruner, items: Sequence[Item]) -> Answers:
    out = Answers([])
    for number, item in enumerate(items):
        own = read(model, item.ids, Picture(model, item.pixels), made, seed=number)
        texts = len(item.ids) - int(of_images(model, item.ids).sum())
        took = {"pairs": sum(own.staged.pairs), "bytes": own.staged.nbytes}
        if took != cost(own.counts, texts, own.staged.geometry):
            raise AssertionError(
                f"{made}: a prompt took {took}, {cost(own.counts, texts, own.staged.geometry)} was predicted"
            )
        out.logs.append(own.logits.log_softmax(-1))
        out.counts.append(own.counts)
        out.kept.append(own.kept.tolist())
        out.costs.append(took)
    return out


def _read(model: Any, made: Any, items: Sequence[Item]) -> Tensor:
    """By a recipe, with sinks marked where it reads those; a control says which marks it is given in their place."""
    recipe, moved = (made, None) if isinstance(made, str) else made
    ids, pixels = _stacked(items)
    image = of_images(model, ids)
    marks: list[Mark] = []
    if "var" in recipe:
        marks += [
            mark for row, own in enumerate(_sinks(model, items, moved == "sinks")) for mark in marks_of(own, SINK, row)
        ]
        marks += [mark for row in range(len(ids)) for mark in _image(image[row], row)]
    elif moved == "text":
        marks += [Mark("image", int(image[row].nonzero()[-1]) + 1, ids.shape[1] - 1, row) for row in range(len(ids))]
    elif "(" in recipe:
        marks += [mark for row in range(len(ids)) for mark in _image(image[row], row)]
    cache = Cache(model, recipe, marks=marks)
    with torch.no_grad():
        return forward(model, cache, ids, pixel_values=pixels, logits_to_keep=1).logits[:, -1].float().log_softmax(-1)


def _image(image: Tensor, row: int) -> list[Mark]:
    places = image.nonzero()[:, 0].tolist()
    return [Mark("image", places[0], places[-1] + 1, row)]


def _sinks(model: Any, items: Sequence[Item], random: bool) -> list[list[bool]]:
    """Which tokens of each prompt are sinks; random: as many others of the image in the place of those of the image."""
    out = []
    for item in items:
        own = found(model, item.ids, Picture(model, item.pixels))
        image = of_images(model, item.ids)
        if random:
            free = (image & ~own).nonzero()[:, 0].tolist()
            drawn = Random(f"sinks/{item.scene.seed}").sample(free, min(len(free), int((own & image).sum())))
            own = own & ~image
            own[drawn] = True
        out.append(own.tolist())
    return out


def _decoded(model: Any, made: Decoder, items: Sequence[Item]) -> Tensor:
    ids, pixels = _stacked(items)
    looks = Looks(model, Cache(model, ""), made)
    looks.pixels, looks.given = pixels, {"pixel_values": pixels}
    logits = looks.read(ids, torch.zeros(len(ids), dtype=torch.int64))
    return looks.step(logits).log_softmax(-1)


@dataclass(frozen=True)
class RandomOutliers(Damro):
    """DAMRO whose outliers chance draws."""

    name = "damro, random tokens"

    def outliers(self, looks: Looks, pixels: Tensor) -> Tensor:
        out = torch.zeros_like(super().outliers(looks, pixels))
        for row, own in enumerate(out):
            own[
                Random(f"damro/{row}/{int(looks.ids[row].sum())}").sample(range(len(own)), min(self.tokens, len(own)))
            ] = True
        return out


@dataclass(frozen=True)
class OtherPicture(CausalMm):
    """CausalMM whose two others are the model as it is, on the next question's picture."""

    name = "causalmm, another picture"

    def _sight(self, looks: Looks, recipe: str, blind: bool) -> Sight:
        rows, pixels = looks.images()
        return Sight(looks.model, "", rows, list(image_features(looks.model, pixels.roll(1, 0))))


@dataclass(frozen=True)
class RandomPlaces(ConsciousGaze):
    """Conscious Gaze that raises as many random places as the image has, text among them."""

    name = "conscious_gaze, random places"

    def scores(self, looks: Looks) -> dict[int, Tensor]:
        out = super().scores(looks)
        order = torch.randperm(looks.ids.shape[1], generator=torch.Generator().manual_seed(0))
        return {layer: one[..., order] for layer, one in out.items()}


@dataclass(frozen=True)
class RandomAsMany(Pruner):
    """As many image tokens as CoreMatching keeps of the same prompt, drawn by chance."""

    name = "core_matching, random tokens"
    card = CoreMatching.card
    everything = ""

    def stay(self, seen: Seen) -> Tensor | None:
        own = CoreMatching().stay(seen)
        if own is None:
            return None
        return own[torch.randperm(len(own), generator=torch.Generator().manual_seed(seen.seed))]


@dataclass(frozen=True)
class SimilarAlone(ZeroTPrune):
    """Zero-TPrune that knows no importance: chance splits the tokens into halves, and those of one that are most like
    one of the other leave."""

    name = "zero_tprune, similarity alone"
    similar: float = 1.0

    def importance(self, seen: Seen) -> Tensor:
        return torch.rand(len(seen.places), generator=torch.Generator().manual_seed(seen.seed))


CONTROLS: dict[str, Any] = {
    "damro, random tokens": RandomOutliers(),
    "causalmm, another picture": OtherPicture(),
    "conscious_gaze, random places": RandomPlaces(),
    "conscious_gaze, every token": ConsciousGaze(threshold=-1e9),
    "core_matching, random tokens": RandomAsMany(),
    "zero_tprune, similarity alone": SimilarAlone(keep=0.6),
    "var, random tokens of the image": ("var", "sinks"),
    "paint, the question": ("paint(0.9)", "text"),
}
