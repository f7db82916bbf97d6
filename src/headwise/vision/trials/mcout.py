"""Questions of two hops, one in the text and one in the picture, asked of a model that first thinks in its states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headwise.experiments import Experiment, ExperimentCard, Part, Seeds, Steps, register
from headwise.seams.transformers.encoder import image_features
from headwise.theory.fitting import adam, generator
from headwise.vision.trials.host import CELLS, KINDS, RATE, ROWS, drawn, host, painted

TESTED = 1024  # questions that a model is tested on
COLOUR, GLYPH, TOLD = 1, 1 + KINDS, 1 + 2 * KINDS  # the first ids of colours, of glyphs, and of what the text tells
NAME = TOLD + KINDS * KINDS  # of names, by which the text asks for glyphs
ARMS = ("none", "base", "multi", "pause")


@register("mcout")
@dataclass(frozen=True, kw_only=True)
class Mcout(Experiment):
    """Trains a Llava of one layer to say which colour a glyph has in a picture, asked for by a name that the text gives
    it: without a thought, after its last state was fed back, after that state had read picture and text as well, and
    after a learned token in the place of a thought.

    steps: of training. thoughts: before an answer.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="MCOUT's continuous thoughts",
        statement="A model whose last state is fed back as its next input for a few steps answers more questions of "
        "two hops than the same model without them at equal training, and at zero steps it is that model",
        paper="Multimodal Chain of Continuous Thought for Latent-Space Reasoning in Vision-Language Models, "
        "arXiv 2508.12587",
        setting="SilVar's 1B-parameter VLM; 5 or 10 thoughts",
        seconds=90,
        systems=(279,),
        differs="a decoder of one layer over 16 image tokens, which with a thought reads twice; "
        "encoder and projector are frozen; the loss is the "
        "answer's alone, where the released code adds one of the thoughts. What the "
        "attention of the Multi variant finds is added to the state, as the paper has it; the released code takes it "
        "through two projections and a norm instead",
        leaves_out="pretrained decoders and natural questions",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("right answers more than without a thought, share", "base", "pause",
             "learned tokens in the place of thoughts", above=0.05),
        Part("right answers more than without a thought, of the Multi variant, share", "multi", "pause",
             "learned tokens in the place of thoughts", above=0.05),
        Part("change of an untrained model's logits by zero thoughts", "zero", "one", "one thought", below=1e-12),
    )  # fmt: skip
    built = ("zero",)

    steps: Steps = 400
    thoughts: Steps = 1
    seeds: Seeds = 3

    def draw(self, seed: int) -> dict[str, Any]:
        """Shares of right answers, and what thoughts change before training."""
        pixels, ids, colour = texts(TESTED, generator(f"{self.name}/test", seed))
        right = dict[str, float]()
        for arm in ARMS:
            model, chance = Thinker(seed, arm, 0 if arm == "none" else self.thoughts), generator(self.name, seed)

            def loss(model: Thinker = model, chance: torch.Generator = chance) -> Tensor:
                seen, asked, told = texts(ROWS, chance)
                return F.cross_entropy(model(seen, asked), COLOUR + told)

            adam([one for one in model.parameters() if one.requires_grad], loss, self.steps, RATE)
            with torch.no_grad():
                right[arm] = float((model(pixels, ids).argmax(-1) == COLOUR + colour).float().mean())
        found = {arm: right[arm] - right["none"] for arm in ARMS[1:]}
        with torch.no_grad():
            plain = Thinker(seed, "none", 0)(pixels[:8], ids[:8])
            for name, count in (("zero", 0), ("one", 1)):
                found[name] = float((Thinker(seed, "multi", count)(pixels[:8], ids[:8]) - plain).abs().max())
        return {"measures": found | {f"right_{arm}": share for arm, share in right.items()}}


def texts(rows: int, chance: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures in which all glyphs of a kind have one colour; ids [rows, KINDS + 1] that tell each name's glyph, in
    any order, and ask for one name; and the colour of its glyph."""
    cells, own = drawn(rows, chance), torch.randint(KINDS, (rows, KINDS), generator=chance)
    cells[:, :KINDS, 1] = torch.arange(KINDS)  # no kind is missing
    cells = cells.gather(1, torch.rand(rows, CELLS, generator=chance).argsort(1)[..., None].expand(-1, -1, 2))
    cells[..., 0] = own.gather(1, cells[..., 1])
    named = torch.rand(rows, KINDS, generator=chance).argsort(1)  # the glyph of each name
    order = torch.rand(rows, KINDS, generator=chance).argsort(1)
    asked = torch.randint(KINDS, (rows, 1), generator=chance)
    ids = torch.cat([TOLD + order * KINDS + named.gather(1, order), NAME + asked], dim=1)
    return painted(cells, chance), ids, own.gather(1, named.gather(1, asked))[:, 0]


class Thinker(nn.Module):
    """The host, with so many thoughts after its question: of the arm's kind."""

    def __init__(self, seed: int, arm: str, thoughts: int) -> None:
        super().__init__()
        self.host, self.arm, self.thoughts = host(NAME + KINDS - 1, seed, layers=1), arm, thoughts
        width = self.host.get_input_embeddings().embedding_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
            self.pause = nn.Parameter(torch.randn(width))

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """The logits [b, words] of the answer."""
        embeds = self.host.get_input_embeddings()
        name = embeds(ids)
        told = ids.clamp(TOLD, NAME - 1) - TOLD  # a sentence is one token: of its name, and of its glyph
        sentence = embeds(NAME + told // KINDS) + embeds(GLYPH + told % KINDS)
        read = torch.where((ids < NAME)[..., None], sentence, name)
        both = torch.cat([image_features(self.host, pixels), read], dim=1)
        inputs = both
        for _ in range(self.thoughts):
            inputs = torch.cat([inputs, self.thought(inputs, both)], dim=1)
        logits: Tensor = self.host(inputs_embeds=inputs, use_cache=False).logits[:, -1]
        return logits

    def thought(self, inputs: Tensor, both: Tensor) -> Tensor:
        """The next input [b, 1, width], after what was read [b, n, width] of picture and text, and earlier thoughts."""
        if self.arm == "pause":
            return self.pause.expand(len(inputs), 1, -1)
        out = self.host(inputs_embeds=inputs, use_cache=False, output_hidden_states=True)
        state: Tensor = out.hidden_states[-1][:, -1:]
        return state + self.attention(state, both, both)[0] if self.arm == "multi" else state
