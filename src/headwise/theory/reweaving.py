"""States that have left the window come back into the stream of a token that they are like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from headwise.experiments import Experiment, ExperimentCard, Part, Seeds, Size, Steps, register
from headwise.theory.decoder import Decoder, Heads, seeded
from headwise.theory.facts import FIRST_QUESTION, KEYS, VALUES, Facts, asked, noise, right, told
from headwise.theory.fitting import adam, generator

WIDTH, HEADS, LAYERS, RATE = 64, 4, 2, 5e-3
SHARP = 10.0  # what a cosine is multiplied by before the softmax, at the start


class Woven(Decoder):
    """A decoder of windows whose layers add, to what they give, states of the layers so far of tokens that have left
    the window. gains: of each layer; 0 weaves nothing."""

    def __init__(self, window: int) -> None:
        super().__init__(Facts(WIDTH), [Heads(WIDTH, HEADS, window) for _ in range(LAYERS)], WIDTH, VALUES)
        self.window = window
        self.gains, self.sharp = nn.Parameter(torch.ones(LAYERS)), nn.Parameter(torch.tensor(SHARP))

    def told_of(self, ids: Tensor, other: Tensor | None = None, off: bool = False) -> Tensor:
        """Logits [batch, VALUES] after ids [batch, tokens]. other: texts whose states are kept in the place of its
        own. off: as a decoder that never weaves."""
        buffer = None if other is None else self.woven(self.embed(other), None)
        states = self.states(self.embed(ids)) if off else self.woven(self.embed(ids), buffer)
        return self.told(states[-1])[:, -1]

    def woven(self, x: Tensor, buffer: list[Tensor] | None) -> list[Tensor]:
        """What each layer is given and the last one gives; buffer: such states of other texts."""
        found = [x]
        for place in range(LAYERS):
            x = self.layer(place, found[-1])
            kept = (found if buffer is None else buffer)[: place + 1]
            found.append(x + self.gains[place] * self.weave(x, kept))
        return found

    def weave(self, x: Tensor, kept: list[Tensor]) -> Tensor:
        """For each token of `x [batch, tokens, WIDTH]` the mean of the states that were kept, of all of these layers,
        by the softmax of their cosine with it; nothing where none has left the window."""
        tokens = x.shape[1]
        gone = torch.ones(tokens, tokens, dtype=torch.bool).tril(-self.window).repeat(1, len(kept))
        states = torch.cat(kept, dim=1)
        like = self.sharp * normalize(x, dim=-1) @ normalize(states, dim=-1).transpose(1, 2)
        weights = like.masked_fill(~gone, torch.finfo(like.dtype).min).softmax(-1) * gone
        return weights @ states


@register("reweaving")
@dataclass(frozen=True, kw_only=True)
class Reweaving(Experiment):
    """Trains small decoders with a window on questions after facts that have left it, rare ones among them, with and
    without weaving.

    window: tokens that a layer sees. tokens: of a text before its question. facts: of a text, in its first half.
    steps: of training. questions: asked, those on rare facts alone.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Contextual Memory Reweaving",
        statement="States of several layers that have left the window, scored by likeness and added back to the "
        "stream, let a model recall more rare tokens than without; where none has left it, or with a gain of 0, it is "
        "the model without",
        paper="Contextual Memory Reweaving in Large Language Models Using Layered Latent State Reconstruction, "
        "arXiv 2502.02046",
        setting="an open model of the Llama family; the paper gives no algorithm that could be made again",
        seconds=60,
        systems=(66,),
        differs="a reading of the paper: cosines times a learned factor, a gain for each layer, states as they are "
        "and without projections; the decoder is trained with it",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("largest change of a logit with a gain of 0, or with nothing out of the window", "off", "on",
             "as trained", below=1e-12),
        Part("rare facts recalled more than by the model trained without, share", "gain", "gain_other",
             "the states of other texts", above=0.05),
    )  # fmt: skip
    built = ("off",)

    window: Size = 8
    tokens: Size = 40
    facts: Size = 6
    seeds: Seeds = 3
    steps: Steps = 200
    questions: Size = 256

    def draw(self, seed: int) -> dict[str, Any]:
        """Right answers on rare facts, of both decoders."""
        woven, bare = self.trained(seed, off=False), self.trained(seed, off=True)
        chance = generator(f"{self.name}/held", seed)
        ids, answer = self.texts(8 * self.questions, chance)
        rare = (ids[:, -1] - FIRST_QUESTION >= KEYS // 2).nonzero()[: self.questions, 0]
        ids, answer = ids[rare], answer[rare]
        short = ids[:, -self.window :]
        with torch.no_grad():
            trained, plain = woven.told_of(ids), right(bare.told_of(ids, off=True), answer)
            other = right(woven.told_of(ids, other=ids.roll(1, 0)), answer)
            on = float((trained - woven.told_of(ids, off=True)).abs().max())
            unfilled = float((woven.told_of(short) - woven.told_of(short, off=True)).abs().max())
            woven.gains.zero_()
            off = float((woven.told_of(ids) - woven.told_of(ids, off=True)).abs().max())
        return {"measures": {
            "off": max(off, unfilled), "on": on,
            "gain": right(trained, answer) - plain, "gain_other": other - plain,
            "right": right(trained, answer), "right_without": plain, "rare_questions": float(len(ids)),
        }}  # fmt: skip

    def trained(self, seed: int, off: bool) -> Woven:
        """A decoder after training, from the start of its seed."""
        chance, model = generator(self.name, seed), seeded(seed, lambda: Woven(self.window))

        def loss() -> Tensor:
            ids, answer = self.texts(32, chance)
            return cross_entropy(model.told_of(ids, off=off), answer)

        adam(list(model.parameters()), loss, self.steps, RATE)
        return model

    def texts(self, rows: int, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        """Ids [rows, tokens + 1] that end in a question after a fact of the first half, and the answers; the key of
        rank r is told in proportion to 1 / r."""
        half = self.tokens // 2
        ids, values = told(rows, half, self.facts, chance, 1 / torch.arange(1.0, KEYS + 1))
        question, answer = asked(ids, values, chance)
        return torch.cat((ids, noise(rows, self.tokens - half, chance), question), dim=1), answer
