"""A small decoder of latent attention and a squared-ReLU network, beside one of grouped heads and a gated network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from headwise.experiments import Experiment, ExperimentCard, Part, Seeds, Size, Steps, register
from headwise.layers.experts.squared_relu import Squared
from headwise.models.host import DecoderLayer, HeadwiseForCausalLM, HostConfig
from headwise.theory.decoder import seeded
from headwise.theory.fitting import generator
from headwise.theory.pieces import drawn, held

WIDTH, HEADS, LAYERS, RANK, ROPE, HIDDEN, RATE = 64, 4, 2, 24, 16, 128, 4e-3
PHASES = (0.1, 0.6, 0.9, 0.1)  # where warming up, staying and decaying end, of the steps; the rate that is left then
LATENT, GROUPED = f"mla(rank={RANK}, rope={ROPE}) | rope", "gqa(2) | rope"


@register("peripheral")
@dataclass(frozen=True, kw_only=True)
class Peripheral(Experiment):
    """Trains both decoders on the same pieces of a novel, in bytes, at equal parameters and with the same rates.

    tokens, batch, steps: of training.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="PLM",
        statement="A decoder of latent attention and a squared-ReLU network without a gate keeps a latent and a turned "
        "key a token, has at least 80 % exact zeros in its hidden channels, which can be skipped, and comes within 2 % "
        "of the loss of one of grouped heads and a gated network with as many parameters",
        paper="PLM: Efficient Peripheral Language Models Hardware-Co-Designed for Ubiquitous Computing, "
        "arXiv 2503.12167, its sections on the architecture and on the WSDC schedule",
        setting="1.8 billion parameters, 2.48 trillion tokens; 90.9 % zeros",
        seconds=60,
        systems=(275,),
        differs="two layers of 64 channels and a novel in bytes; rates warm up, stay, decay along a cosine and stay at "
        "a tenth, the lengths of which are ours; no preference learning",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("numbers of a layer's cache a token, less rank and turned channels", "cache", "cache_grouped",
             "grouped heads", below=0.5),
        Part("exact zeros in the hidden channels on held-out text, share", "zeros", "zeros_untrained",
             "before the training", above=0.8),
        Part("skipping zeros: largest difference over the largest number", "skipped", "skipped_more",
             "half of the other channels skipped as well", below=1e-5),
        Part("held-out loss over that of grouped heads and a gated network", "loss", "loss_early",
             "after a quarter of the steps", below=1.02),
    )  # fmt: skip

    seeds: Seeds = 3

    tokens: Size = 64
    batch: Size = 8
    steps: Steps = 400

    def draw(self, seed: int) -> dict[str, Any]:
        """Losses of both decoders, and what is 0 in one of them."""
        grouped = self.host(GROUPED, "gated_feed", HIDDEN, seed)
        wanted = sum(one.numel() for one in grouped.parameters())
        least = sum(one.numel() for one in self.host(LATENT, "squared_relu", 1, seed).parameters())
        hidden = 1 + round((wanted - least) / (2 * LAYERS * WIDTH))
        latent = self.host(LATENT, "squared_relu", hidden, seed)
        untrained, numbers = self.zeros(latent), cached(latent)
        self.train(grouped, seed, self.steps)
        early = self.host(LATENT, "squared_relu", hidden, seed)
        self.train(early, seed, max(1, self.steps // 4))
        self.train(latent, seed, self.steps)
        with torch.no_grad():
            losses = [float(self.loss(one, held(self.tokens))) for one in (latent, early, grouped)]
            return {"measures": {
                "cache": abs(numbers - RANK - ROPE), "cache_grouped": abs(cached(grouped) - RANK - ROPE),
                "zeros": self.zeros(latent), "zeros_untrained": untrained,
                **self.skipped(latent),
                "loss": losses[0] / losses[2], "loss_early": losses[1] / losses[2], "loss_grouped": losses[2],
                "parameters_over_grouped": sum(one.numel() for one in latent.parameters()) / wanted,
            }}  # fmt: skip

    def host(self, sentence: str, feed: str, hidden: int, seed: int) -> HeadwiseForCausalLM:
        """A decoder of one kind of layer."""
        return seeded(seed, lambda: HeadwiseForCausalLM(HostConfig(
            sentence, 256, WIDTH, LAYERS, HEADS, hidden, feed, initializer_range=0.08)))  # fmt: skip

    def train(self, model: HeadwiseForCausalLM, seed: int, steps: int) -> None:
        """On pieces of the text, the same for all decoders of a seed."""
        chance, parameters = generator(self.name, seed), list(model.parameters())
        optimiser = torch.optim.Adam(parameters, lr=RATE)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step / steps))
        with torch.enable_grad():
            for _ in range(steps):
                optimiser.zero_grad()
                self.loss(model, drawn(self.batch, self.tokens, chance)).backward()
                optimiser.step()
                schedule.step()

    def loss(self, model: HeadwiseForCausalLM, pieces: Tensor) -> Tensor:
        """The mean loss of the next byte in `pieces [batch, tokens + 1]`, nats."""
        return F.cross_entropy(model(pieces[:, :-1]).logits.flatten(0, 1), pieces[:, 1:].flatten())

    @torch.no_grad()
    def hidden(self, model: HeadwiseForCausalLM) -> list[tuple[Squared, Tensor]]:
        """Each layer's network, and what it is given on held-out text [tokens, width]."""
        found: list[tuple[Squared, Tensor]] = []
        hooks = [layer.feed.register_forward_pre_hook(lambda feed, given: found.append((feed, given[0].flatten(0, 1))))
                 for layer in model.layers if isinstance(layer, DecoderLayer)]  # fmt: skip
        model(held(self.tokens)[:16, :-1])
        for hook in hooks:
            hook.remove()
        return found

    def zeros(self, model: HeadwiseForCausalLM) -> float:
        """The share of exact zeros in the hidden channels."""
        shares = [(feed.hidden(x) == 0).float().mean() for feed, x in self.hidden(model)]
        return float(torch.stack(shares).mean())

    def skipped(self, model: HeadwiseForCausalLM) -> dict[str, float]:
        """What skipping zeros changes, and skipping more."""
        found: dict[str, list[Tensor]] = {"skipped": [], "skipped_more": []}
        for feed, x in self.hidden(model):
            for token in x[:: len(x) // 16]:
                whole, hidden = feed.down(feed.hidden(token)), feed.hidden(token)
                for name, least in (("skipped", 0.0), ("skipped_more", float(hidden[hidden > 0].median()))):
                    found[name].append((feed.skipping(token, least) - whole).abs().max() / whole.abs().max())
        return {name: float(torch.stack(one).max()) for name, one in found.items()}


def rate(done: float) -> float:
    """The learning rate's share of its largest, where this share of the steps is done."""
    warm, stable, decayed, left = PHASES
    if done < warm:
        return done / warm
    along = min(max(done - stable, 0.0) / (decayed - stable), 1.0)
    return left + (1 - left) * (1 + float(torch.tensor(along * torch.pi).cos())) / 2


def cached(model: HeadwiseForCausalLM) -> float:
    """Numbers of a layer's cache a token, apart from those of a fixed size."""
    config = model.config
    assert isinstance(config, HostConfig)
    more = [config.state_bytes(2, element) - config.state_bytes(1, element) for element in (4, 2)]
    return (more[0] - more[1]) / 2 / config.num_hidden_layers
