"""Attention from a decoder to an encoder, beside what the decoder's tokens really rest on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from headwise.experiments import Experiment, ExperimentCard, Part, Seeds, Size, Steps, register
from headwise.theory.fitting import adam
from headwise.theory.stack import Stack

TONES, SAID, FRAMES, BANDS = 6, 4, 24, 8  # kinds of tones, tones of a recording, its frames, bands of a frame
WIDTH, HEADS, LAYERS = 32, 4, 2
NOISE, RATE, ROWS = 0.3, 4e-3, 32
BLOCK, HIDDEN = 2, 0.4  # frames that are hidden together, and how often they are


class Listener(nn.Module):
    """An encoder of frames and a decoder of tones."""

    def __init__(self) -> None:
        super().__init__()
        self.hear, self.encoder = nn.Linear(BANDS, WIDTH), Stack(FRAMES, LAYERS, HEADS, WIDTH)
        self.embed, self.places = nn.Embedding(TONES + 1, WIDTH), nn.Parameter(0.5 * torch.randn(SAID, WIDTH))
        self.own, self.across = (
            nn.ModuleList(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True) for _ in range(LAYERS))
            for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * LAYERS + 2))
        self.say = nn.Linear(WIDTH, TONES)

    def heard(self, frames: Tensor) -> Tensor:
        """The encoder's output [b, FRAMES, WIDTH] for frames [b, FRAMES, BANDS]."""
        states: Tensor = self.norms[-1](self.encoder(self.hear(frames))[0])
        return states

    def forward(self, heard: Tensor, tones: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [b, SAID, TONES] of each tone after those before it, and attention to frames
        [b, LAYERS * HEADS, SAID, FRAMES]."""
        before = torch.cat((tones.new_full((len(tones), 1), TONES), tones[:, :-1]), dim=1)
        x, maps = self.embed(before) + self.places, list[Tensor]()
        later = torch.ones(SAID, SAID, dtype=torch.bool).triu(1)
        for layer in range(LAYERS):
            read = self.norms[2 * layer](x)
            x = x + self.own[layer](read, read, read, attn_mask=later, need_weights=False)[0]
            added, weights = self.across[layer](
                self.norms[2 * layer + 1](x), heard, heard, average_attn_weights=False
            )  # fmt: skip
            x, maps = x + added, [*maps, weights]
        return self.say(self.norms[-2](x)), torch.cat(maps, dim=1)


def recordings(rows: int, chance: torch.Generator, sounds: Tensor) -> tuple[Tensor, Tensor]:
    """Frames [rows, FRAMES, BANDS] of SAID tones of 3 to 6 frames each, silence behind, and the tones [rows, SAID].
    sounds: of each kind, [TONES, BANDS]."""
    tones = torch.randint(TONES, (rows, SAID), generator=chance)
    ends = torch.randint(3, 7, (rows, SAID), generator=chance).cumsum(1)
    which = (torch.arange(FRAMES) >= ends[..., None]).sum(1)  # [rows, FRAMES]
    heard = torch.cat((sounds[tones], sounds.new_zeros(rows, 1, BANDS)), dim=1)
    frames = heard.gather(1, which[..., None].expand(-1, -1, BANDS))
    return frames + NOISE * torch.randn(frames.shape, generator=chance), tones


@register("crossing")
@dataclass(frozen=True, kw_only=True)
class Crossing(Experiment):
    """Trains an encoder-decoder on recordings of tones, and correlates its attention to frames with saliency.

    steps: of the training. texts: recordings of a draw. masks: of frames, by which saliency is told.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Cross-attention as an explanation",
        statement="Attention to the encoder, averaged over heads and layers, follows saliency better than single heads "
        "do, and saliency of the encoder's output better than that of the input",
        paper="Cross-Attention is Half Explanation in Speech-to-Text Models, arXiv 2509.18010, abstract",
        setting="Conformers of up to 878 million weights on speech; saliency by SPES",
        seconds=40,
        systems=(318,),
        differs="tones in noise, all attention is looked at beside the tones that were played; saliency is by random "
        "masks of two frames, how much likelier a tone is where a frame is left, and has no clusters of the spectrum",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("correlation with the encoder output's saliency, mean of all heads less the median head", "mean",
             "mean_one", "a head by chance less the median head", above=0.0),
        Part("correlation of the mean of all heads with the encoder output's saliency less that with the input's",
             "output", "output_halves", "the input's saliency by other masks less the input's", above=0.05),
    )  # fmt: skip
    seeds: Seeds = 3

    steps: Steps = 400
    texts: Size = 16
    masks: Size = 256

    def draw(self, seed: int) -> dict[str, Any]:
        """Correlations of one model, the mean over recordings."""
        chance = torch.Generator().manual_seed(seed)
        sounds = torch.randn(TONES, BANDS, generator=chance)
        model = self.trained(seed, chance, sounds)
        frames, tones = recordings(self.texts, chance, sounds)
        with torch.no_grad():
            heard = model.heard(frames)
            logits, maps = model(heard, tones)
            given = [self.saliency(model, frames, tones, chance, inside=False) for _ in range(2)]
            inner = [self.saliency(model, heard, tones, chance, inside=True) for _ in range(2)]
        mean = maps.mean(1)
        single = torch.stack([alike(one, inner[0]) for one in maps.unbind(1)])
        at = int(torch.randint(len(single), (), generator=chance))
        whole, shallow = alike(mean, inner[0]), alike(mean, given[0])
        return {"measures": {
            "mean": float(whole - single.median()), "mean_one": float(single[at] - single.median()),
            "output": float(whole - shallow), "output_halves": float(alike(mean, given[1]) - shallow),
            "whole": float(whole), "whole_itself": float(alike(inner[1], inner[0])),
            "input": float(shallow), "right": float((logits.argmax(-1) == tones).float().mean()),
        }}  # fmt: skip

    def trained(self, seed: int, chance: torch.Generator, sounds: Tensor) -> Listener:
        """A listener after its steps."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Listener()

        def loss() -> Tensor:
            frames, tones = recordings(ROWS, chance, sounds)
            return cross_entropy(model(model.heard(frames), tones)[0].flatten(0, 1), tones.flatten())

        adam(list(model.parameters()), loss, self.steps, RATE)
        return model.eval()

    def saliency(self, model: Listener, shown: Tensor, tones: Tensor, chance: torch.Generator, inside: bool) -> Tensor:
        """How much likelier each tone is where a frame is left than where it is hidden, [b, SAID, FRAMES]. shown: the
        frames, or with `inside` the encoder's output."""
        found = []
        for one, said in zip(shown, tones, strict=True):
            left = torch.rand(self.masks, FRAMES // BLOCK, generator=chance) >= HIDDEN
            left = left.repeat_interleave(BLOCK, dim=1).float()
            rows = one * left[..., None]
            heard = rows if inside else model.heard(rows)
            said = said.expand(self.masks, -1)
            likely = model(heard, said)[0].softmax(-1).gather(2, said[..., None])[..., 0]  # [masks, SAID]
            found.append(likely.T @ left / left.sum(0) - likely.T @ (1 - left) / (1 - left).sum(0))
        return torch.stack(found)


def alike(one: Tensor, other: Tensor) -> Tensor:
    """The correlation of two maps [b, SAID, FRAMES] over all cells of a recording, the mean over recordings."""
    one, other = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (one, other))
    return ((one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))).mean()
