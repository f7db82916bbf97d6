"""DARA: factors on the scores of images' tokens, which make a model look at the images of its demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy, layer_norm

from headwise.context.trials.hosts import HEADS, WIDTH, Decoder
from headwise.experiments import Experiment, ExperimentCard, Part, Size, Steps, register
from headwise.theory.facts import FIRST_NOISE, FIRST_QUESTION, KEYS, NOISE, VALUES, right
from headwise.theory.fitting import adam, generator

SHOTS, BLANK = 4, FIRST_NOISE + NOISE - 1  # demonstrations, an image and a label each; the token of a blank image
TOKENS, IMAGES = 2 * SHOTS + 1, slice(0, 2 * SHOTS + 1, 2)  # the last image is asked for
NEEDED, ROWS, RATE = 0.3, 64, 3e-3  # share of prompts in the host's training that need their images
Prompts = tuple[torch.Tensor, torch.Tensor]  # ids [rows, tokens] and labels that answer them [rows]


@register("image_factors")
@dataclass(frozen=True, kw_only=True)
class ImageFactors(Experiment):
    """Trains a decoder that goes by images where labels differ and by the usual label where they do not, then alone a
    factor for each head and image of its first layer on prompts of the second kind that are to be answered by images;
    and as a rival a low-rank change of the first layer's queries.

    host_steps: of the decoder's training. steps: of the factors'. prompts: of a draw.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="DARA's factors",
        statement="Factors on the scores of images in the first layer, fewer than 200, raise the attention to the "
        "images of demonstrations and the right answers where these are needed, more than a low-rank change of no "
        "fewer numbers does; blank images take the gain away, and factors of 1 change nothing",
        paper="True Multimodal In-Context Learning Needs Attention to the Visual Context, arXiv 2507.15807",
        setting="Qwen2-VL, Idefics3 and Phi-3.5-vision on TrueMICL, 100 to 160 numbers trained",
        seconds=80,
        systems=(65,),
        differs="made from the paper's outline, no official code was found; two layers of 64 channels, an image is one "
        "token of its class; the rival trains one half of a rank of one, 64 numbers beside 20",
        leaves_out="a pretrained vision-language model and TrueMICL's tasks",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("largest change of a logit at factors of 1", "neutral", "trained_change", "trained factors", below=1e-6),
        Part("right answers beyond the frozen model's, share", "gain", "gain_blank", "blank demonstrations", above=0.0),
        Part("right answers beyond the low-rank change's, share", "beyond_rank", "blank_beyond_rank",
             "blank demonstrations", above=0.0),
        Part("attention to demonstrations' images beyond the frozen model's, share", "look", "look_rank",
             "the low-rank change", above=0.0),
    )  # fmt: skip

    host_steps: Steps = 1500
    steps: Steps = 300
    prompts: Size = 256

    def draw(self, seed: int) -> dict[str, Any]:
        """Answers with factors, with a low-rank change, and without."""
        chance = generator(self.name, seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = Decoder()
        adam(list(model.parameters()), lambda: self._loss(model, habitual(ROWS, chance)), self.host_steps, RATE)
        model.requires_grad_(False)
        own = model.projections()[0].clone()
        factors = torch.ones(HEADS, SHOTS + 1, requires_grad=True)
        adam([factors], lambda: self._loss(model, prompts(ROWS, chance), factors), self.steps, RATE * 3)
        column, row = torch.zeros(WIDTH, 1, requires_grad=True), torch.randn(1, WIDTH, generator=chance) / WIDTH**0.5

        def change() -> torch.Tensor:
            return torch.cat([(own[0] + column @ row)[None], own[1:]])

        adam([column], lambda: self._loss(model, prompts(ROWS, chance), None, change()), self.steps, RATE * 3)
        with torch.no_grad():
            return {"measures": measured(model, factors, change(), prompts(self.prompts, chance))}

    def _loss(
        self, model: Decoder, told: Prompts, factors: torch.Tensor | None = None, first: torch.Tensor | None = None
    ) -> torch.Tensor:
        return cross_entropy(logits(model, told[0], factors, first), told[1])


def prompts(rows: int, chance: torch.Generator) -> Prompts:
    """Prompts of demonstrations of which all but one have the usual label, and of an image as in one of them, every
    other time in the unusual one; that one's label answers."""
    images = torch.rand(rows, KEYS, generator=chance).argsort(1)[:, :SHOTS]
    usual, unusual = torch.rand(rows, VALUES, generator=chance).argsort(1)[:, :2].unsqueeze(2).unbind(1)
    odd, other = torch.rand(rows, SHOTS, generator=chance).argsort(1)[:, :2].unsqueeze(2).unbind(1)
    which = torch.where(torch.rand(rows, 1, generator=chance) < 0.5, odd, other)
    labels = torch.where(torch.arange(SHOTS) == odd, unusual, usual)
    return put(images, labels, which), labels.gather(1, which)[:, 0]


def habitual(rows: int, chance: torch.Generator) -> Prompts:
    """Prompts that a host learns from: the same, but the usual label answers; and in a share of them all labels are
    others, and the label of the image answers."""
    ids, _ = prompts(rows, chance)
    usual = (ids[:, 1 : 2 * SHOTS : 2] - FIRST_NOISE).mode(1).values
    images = torch.rand(rows, KEYS, generator=chance).argsort(1)[:, :SHOTS]
    labels = torch.rand(rows, VALUES, generator=chance).argsort(1)[:, :SHOTS]
    which = torch.randint(SHOTS, (rows, 1), generator=chance)
    needs = torch.rand(rows, generator=chance) < NEEDED
    ids = torch.where(needs[:, None], put(images, labels, which), ids)
    return ids, torch.where(needs, labels.gather(1, which)[:, 0], usual)


def put(images: torch.Tensor, labels: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """The ids [rows, tokens] of images and labels [rows, demonstrations] in turn, and of one image again [rows, 1]."""
    shown = torch.stack([FIRST_QUESTION + images, FIRST_NOISE + labels], dim=2).flatten(1)
    return torch.cat([shown, FIRST_QUESTION + images.gather(1, which)], dim=1)


def by_token(factors: torch.Tensor | None) -> torch.Tensor | None:
    """Factors [heads, images] as those of all tokens [heads, tokens]: text keeps its scores."""
    if factors is None:
        return None
    return torch.ones(HEADS, TOKENS).index_copy(1, torch.arange(TOKENS)[IMAGES], factors)


def logits(
    model: Decoder, ids: torch.Tensor, factors: torch.Tensor | None = None, first: torch.Tensor | None = None
) -> torch.Tensor:
    """The answer's, with factors on the first layer's scores, or with other projections in that layer."""
    own = {} if first is None else {"layers.0.project": first}
    found: torch.Tensor = functional_call(model, own, (model.embed(ids),), {"factors": by_token(factors)})[0]
    return found


def looks(model: Decoder, ids: torch.Tensor, factors: torch.Tensor, first: torch.Tensor) -> float:
    """The share of the last token's attention in the first layer that demonstrations' images get, the mean of heads."""
    read = layer_norm(model.embed(ids) + model.place.weight[:TOKENS], (WIDTH,))
    query, key = ((read @ first[i]).unflatten(-1, (HEADS, -1)) for i in range(2))
    scores = torch.einsum("bhd,bthd->bht", query[:, -1], key) / (WIDTH // HEADS) ** 0.5 * by_token(factors)
    return float(scores.softmax(-1)[..., IMAGES][..., :SHOTS].sum(-1).mean())


def measured(model: Decoder, factors: torch.Tensor, first: torch.Tensor, told: Prompts) -> dict[str, float]:
    """What factors do, beside other projections of the first layer and the model as it is."""
    ids, answer = told
    blank, ones, own = ids.clone(), torch.ones_like(factors), model.projections()[0]
    blank[:, IMAGES][:, :SHOTS] = BLANK
    frozen, changed = logits(model, ids), logits(model, ids, factors)
    alone, rank = right(frozen, answer), right(logits(model, ids, None, first), answer)
    trained, unseen = right(changed, answer), right(logits(model, blank, factors), answer)
    before = looks(model, ids, ones, own)
    return {
        "neutral": float((logits(model, ids, ones) - frozen).abs().max()),
        "trained_change": float((changed - frozen).abs().max()),
        "gain": trained - alone, "gain_blank": unseen - alone, "frozen": alone, "low_rank": rank,
        "beyond_rank": trained - rank, "blank_beyond_rank": unseen - rank,
        "look": looks(model, ids, factors, own) - before, "look_rank": looks(model, ids, ones, first) - before,
    }  # fmt: skip
