"""Frozen features pooled by learned queries that score them as they are, and each read a part of the channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, mse_loss

from headwise.experiments import Experiment, ExperimentCard, Part, Steps, register
from headwise.theory.fitting import adam, drawn, generator, share_right
from headwise.theory.stack import Stack

PATCHES, PIXELS, WIDTH, QUERIES, CLASSES = 16, 12, 32, 4, 8  # of a picture; of a patch; channels; queries and heads
HIDDEN, ROWS, TESTED = 0.5, 64, 512  # share of patches that are hidden in training; pictures
RATE, PROBE_RATE = 3e-3, 3e-2
NOISE = 0.3


@register("efficient_probe")
@dataclass(frozen=True, kw_only=True)
class EfficientProbe(Experiment):
    """Pictures of two patches that show an object's halves before many that show clutter, an encoder that was trained
    to paint what is hidden of them, and probes of its frozen features that tell the object.

    steps: of the encoder's training. probing: of a probe's.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Efficient probing",
        statement="Queries that score frozen features directly, each for a slice of the values' channels, need a "
        "quarter of a multi-head attention probe's parameters, tell more than a linear probe of the mean, and their "
        "maps overlap less than those heads' do",
        paper="Attention, Please! Revisiting Attentive Probing for Masked Image Modeling, arXiv 2506.10178, section 3, "
        "and its code",
        setting="ViT-B of MAE, BEiT and others, ImageNet, 32 queries",
        seconds=30,
        systems=(12,),
        differs="an encoder of 2 layers that sees hidden patches as a learned one, and drawn pictures",
        leaves_out="trained vision models and photographs",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("parameters of pooling over 4 d^2, those of a multi-head probe", "weights", "weights_heads",
             "the multi-head probe as it is", below=0.3),
        Part("right answers more than of a linear probe of the mean with the same values, share", "gain", "gain_linear",
             "the linear probe of the mean without them", above=0.05),
        Part("overlap of maps less than that of the multi-head probe's, cosine", "apart", "apart_untrained",
             "queries as they begin", above=0.0),
    )  # fmt: skip

    steps: Steps = 300
    probing: Steps = 2000

    def draw(self, seed: int) -> dict[str, Any]:
        """Parameters, right answers and overlaps of probes of the same features."""
        chance = generator(self.name, seed)
        kinds = torch.randn(CLASSES + 8, 2, PIXELS, generator=chance)  # both halves of objects, and of clutter
        encoder = self.encoder(kinds, seed, chance)
        held, label = pictures(TESTED, kinds, chance)
        features = encoder.features(held)
        right, probes = {}, {"ep": Probe.efficient(chance), "heads": Probe.multi_head(chance)}
        before = overlap(probes["ep"].maps(features).detach())
        probes |= {"uniform": Probe.uniform(chance), "linear": Probe((), 1)}
        for name, probe in probes.items():
            right[name] = self.probed(probe, encoder, kinds, seed, (features, label))
        apart = overlap(probes["heads"].maps(features).detach())
        return {"measures": {
            "weights": probes["ep"].size / (4 * WIDTH**2), "weights_heads": probes["heads"].size / (4 * WIDTH**2),
            "gain": right["ep"] - right["uniform"], "gain_linear": right["linear"] - right["uniform"],
            "apart": apart - overlap(probes["ep"].maps(features).detach()), "apart_untrained": apart - before,
            **{f"right_{name}": share for name, share in right.items()},
        }}  # fmt: skip

    def encoder(self, kinds: Tensor, seed: int, chance: torch.Generator) -> Encoder:
        """An encoder that was trained to paint hidden patches."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = Encoder()

        def loss() -> Tensor:
            x, _ = pictures(ROWS, kinds, chance)
            hidden = torch.rand(ROWS, PATCHES, 1, generator=chance) < HIDDEN
            return mse_loss(made(x, hidden)[hidden[..., 0]], x[hidden[..., 0]])

        adam([*made.parameters()], loss, self.steps, RATE)
        return made

    def probed(self, probe: Probe, encoder: Encoder, kinds: Tensor, seed: int, held: tuple[Tensor, Tensor]) -> float:
        """Right answers on held features of a linear classifier, trained with the probe on 512 pictures."""
        chance = generator(f"{self.name}/probe", seed)
        x, label = pictures(512, kinds, chance)
        features, out = encoder.features(x), drawn(chance, WIDTH, CLASSES)

        def loss() -> Tensor:
            few = torch.randint(len(x), (ROWS,), generator=chance)
            return cross_entropy(probe(features[few]) @ out, label[few])

        adam([*probe.weights, out], loss, self.probing, PROBE_RATE)
        with torch.no_grad():
            return share_right(probe(held[0]) @ out, held[1])


class Encoder(nn.Module):
    """Patches that are embedded, two layers of attention in both directions, and patches painted from them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.paint = nn.Linear(PIXELS, WIDTH), nn.Linear(WIDTH, PIXELS)
        self.hidden = nn.Parameter(torch.zeros(WIDTH))
        self.stack, self.norm = Stack(PATCHES, 2, QUERIES, WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Painted patches of pictures [n, PATCHES, PIXELS], of which some are not seen."""
        painted: Tensor = self.paint(self.norm(self.stack(torch.where(hidden, self.hidden, self.embed(x)))[0]))
        return painted

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """[n, PATCHES, WIDTH] of whole pictures."""
        found: Tensor = self.norm(self.stack(self.embed(x))[0])
        return found


@dataclass
class Probe:
    """From features [n, PATCHES, WIDTH] to one vector of a picture. weights: none; values; queries and values; or
    queries, keys, values and out."""

    weights: tuple[Tensor, ...]
    queries: int

    @classmethod
    def efficient(cls, chance: torch.Generator) -> Probe:
        """Queries as wide as features."""
        asks = (0.02 * torch.randn(QUERIES, WIDTH, generator=chance)).requires_grad_()
        return cls((asks, drawn(chance, WIDTH, WIDTH)), QUERIES)

    @classmethod
    def multi_head(cls, chance: torch.Generator) -> Probe:
        """One learned vector that asks, projected for each head as the keys are."""
        asks = (0.02 * torch.randn(1, WIDTH, generator=chance)).requires_grad_()
        return cls((asks, *(drawn(chance, WIDTH, WIDTH) for _ in range(4))), QUERIES)

    @classmethod
    def uniform(cls, chance: torch.Generator) -> Probe:
        """Values alone."""
        return cls((drawn(chance, WIDTH, WIDTH),), 1)

    @property
    def size(self) -> int:
        """Numbers that it learns."""
        return sum(one.numel() for one in self.weights)

    def maps(self, x: Tensor) -> Tensor:
        """The weights of patches, [n, queries, PATCHES]."""
        if len(self.weights) < 2:
            return torch.full((len(x), 1, PATCHES), 1 / PATCHES)
        if len(self.weights) == 2:
            return (self.weights[0] @ x.mT / WIDTH**0.5).softmax(-1)
        asked = (self.weights[0] @ self.weights[1]).view(QUERIES, 1, -1)
        keys = (x @ self.weights[2]).unflatten(-1, (QUERIES, -1)).transpose(1, 2)
        return (asked @ keys.mT / (WIDTH / QUERIES) ** 0.5).softmax(-1)[:, :, 0]

    def __call__(self, x: Tensor) -> Tensor:
        values = x if not self.weights else x @ self.weights[{1: 0, 2: 1}.get(len(self.weights), 3)]
        slices = values.unflatten(-1, (self.queries, -1))
        read = torch.einsum("nqp,npqc->nqc", self.maps(x), slices).flatten(1)
        return read @ self.weights[4] if len(self.weights) > 2 else read


def pictures(rows: int, kinds: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures [rows, PATCHES, PIXELS] and their objects: halves stand side by side, those of an object in two patches,
    those of clutter in all others."""
    label = torch.randint(CLASSES, (rows,), generator=chance)
    shown = CLASSES + torch.randint(len(kinds) - CLASSES, (rows, PATCHES // 2), generator=chance)
    shown[torch.arange(rows), torch.randint(PATCHES // 2, (rows,), generator=chance)] = label
    bright = 1 + torch.rand(rows, PATCHES // 2, 1, 1, generator=chance)
    x = (kinds[shown] * bright).flatten(1, 2)
    return x + NOISE * torch.randn(x.shape, generator=chance), label


def overlap(maps: Tensor) -> float:
    """Cosine of two maps of a picture, the mean over pairs and pictures."""
    pairs = cosine_similarity(maps[:, :, None], maps[:, None], dim=-1)
    count = maps.shape[1]
    return float((pairs.sum((1, 2)) - count).mean() / (count * (count - 1)))
