"""Heads whose weights were made to copy, or to name what comes next, read from their weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from headwise.calibrate.subject import ModelSubject
from headwise.experiments import Experiment, ExperimentCard, Part, Seeds, Size, register
from headwise.lens.interventions import Head
from headwise.lens.ships import heads_of
from headwise.lens.stream import stream
from headwise.lens.writes import Vocabulary
from headwise.seams.transformers.small import small_decoder

WORDS, HEADS, WIDTH, LAYERS = 64, 4, 128, 2
WIDE = WIDTH // HEADS
BEST = 3  # tokens of a row of the map that count as written
PLANTED: dict[str, Head] = {"copy": (0, 1), "successor": (1, 2)}


def host(seed: int) -> ModelSubject:
    """A model of random weights in which one head copies and one names the next token, by its values and outputs."""
    model = small_decoder(WORDS, LAYERS, HEADS, WIDTH, seed)
    sources = model.get_input_embeddings()(torch.arange(WORDS)).detach()
    sources = sources / sources.square().mean(-1, keepdim=True).sqrt()  # as the layer's norm leaves them
    targets = model.get_output_embeddings().weight.detach()
    for name, (layer, head) in PLANTED.items():
        wanted = torch.eye(WORDS).roll(1 if name == "successor" else 0, dims=1)
        whole = torch.linalg.pinv(sources) @ wanted @ torch.linalg.pinv(targets).T  # [width, width], of rank WORDS
        u, s, v = torch.linalg.svd(whole)
        scale = s[:WIDE].sqrt()
        attention, own = model.model.layers[layer].self_attn, slice(head * WIDE, (head + 1) * WIDE)
        attention.v_proj.weight.data[own] = (u[:, :WIDE] * scale).T
        attention.o_proj.weight.data[:, own] = (scale[:, None] * v[:WIDE]).T
    return ModelSubject(model)


@register("vocabulary_maps")
@dataclass(frozen=True, kw_only=True)
class VocabularyMaps(Experiment):
    """Plants a head that copies and one that names the next token, and looks for both by every head's map.

    texts: texts of one token in which it is seen what heads really write.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="What heads write, by weights alone",
        statement="The share of a relation's pairs whose target is among the best of its source's row of a head's "
        "vocabulary map finds the head that implements the relation, and foretells what it writes as the model runs",
        paper="Inferring Functionality of Attention Heads from their Parameters (MAPS), arXiv 2412.11965, section 3 "
        "(maps), and on predefined relations",
        setting="six models of up to 70 billion weights, 20 relations",
        seconds=2,
        systems=(198,),
        differs="two relations, planted; what heads really write is seen as they attend to the token itself",
        leaves_out="salient rows, which are listed by `headwise lens`",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("score of the head that copies, and of the one that names the next token, the lower of both", "planted",
             "planted_exchanged", "each on the other's relation", above=0.9),
        Part("highest score of another head", "others", "others_planted", "the planted heads themselves", below=0.2),
        Part("correlation, over heads that nothing was planted in, of scores with how often outputs promote the target",
             "foretold", "foretold_shuffled", "each head beside the next one's", above=0.6),
    )  # fmt: skip

    texts: Size = 32
    seeds: Seeds = 10

    def draw(self, seed: int) -> dict[str, Any]:
        """Scores of one model's heads."""
        subject, chance = host(seed), torch.Generator().manual_seed(seed)
        words = torch.arange(WORDS)
        maps, heads = Vocabulary(subject, words), heads_of(subject)
        scores = {
            name: {head: score(maps.written(head), (words + step) % WORDS) for head in heads}
            for name, step in (("copy", 0), ("successor", 1))
        }
        seen = self.seen(subject, torch.randperm(WORDS, generator=chance)[: self.texts])
        plain = [head for head in heads if head not in PLANTED.values()]
        told = torch.tensor([[scores[name][head], seen[name][head]] for name in scores for head in plain]).T
        other = [scores[name][head] for name in scores for head in plain]
        own = [scores[name][head] for name, head in PLANTED.items()]
        crossed = [scores[name][PLANTED[kind]] for name, kind in (("copy", "successor"), ("successor", "copy"))]
        return {"measures": {
            "planted": min(own), "planted_exchanged": max(crossed), "others": max(other), "others_planted": min(own),
            "foretold": float(torch.corrcoef(told)[0, 1]),
            "foretold_shuffled": float(torch.corrcoef(torch.stack((told[0], told[1].roll(1))))[0, 1]),
        }}  # fmt: skip

    def seen(self, subject: ModelSubject, tokens: Tensor) -> dict[str, dict[Head, float]]:
        """By relation and head, how often a head's output raises the target among the best, in texts of one token read
        twice."""
        unembed = subject.model.get_output_embeddings().weight.detach().float()
        added: dict[Head, list[Tensor]] = {head: [] for head in heads_of(subject)}
        for token in tokens.tolist():
            found = stream(subject, torch.tensor([[token, token]]), [1])
            for layer in found.read:
                for head, one in enumerate(found.added(layer)):
                    added[layer, head].append(one[0] @ unembed.T)
        return {
            name: {head: score(torch.stack(rows), (tokens + step) % WORDS) for head, rows in added.items()}
            for name, step in (("copy", 0), ("successor", 1))
        }


def score(rows: Tensor, targets: Tensor) -> float:
    """The share of rows [n, vocabulary] that have their target [n] among the BEST."""
    return float((rows.topk(BEST).indices == targets[:, None]).any(-1).float().mean())
