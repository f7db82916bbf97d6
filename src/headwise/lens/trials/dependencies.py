"""Relations between words in the attention of an encoder: of single heads, and of all heads together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from headwise.experiments import Experiment, ExperimentCard, Part, Size, Steps, register
from headwise.theory.fitting import adam
from headwise.theory.stack import Stack

RELATIONS, WORDS, TOKENS = 3, 4, 12  # kinds of relations, words of a kind, words of a sentence
MASK = 2 * RELATIONS * WORDS  # the first of a mask for each relation; words below are heads, then dependents
WIDTH, HEADS, LAYERS = 48, 4, 2
RATE, ROWS = 4e-3, 64
TRAINED, PROBED = 128, 300  # sentences and steps that a probe is trained on


def sentences(rows: int, chance: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Words [rows, TOKENS] whose dependents are masked, the dependents' words, and the places of their heads, both
    [rows, TOKENS] and -1 elsewhere. A relation's dependent belongs to the one word of its kind, at any distance to the
    left or right, and is told by it."""
    order = torch.rand(rows, TOKENS, generator=chance).argsort(1)
    heads, dependents = order[:, :RELATIONS], order[:, RELATIONS : 2 * RELATIONS]
    kinds, said = torch.arange(RELATIONS), torch.randint(WORDS, (rows, RELATIONS), generator=chance)
    filler = torch.full((rows, TOKENS), MASK + RELATIONS)
    words = filler.scatter(1, heads, kinds * WORDS + said).scatter(1, dependents, (MASK + kinds).expand(rows, -1))
    nothing = torch.full((rows, TOKENS), -1)
    answers = (RELATIONS + kinds) * WORDS + said
    return words, nothing.scatter(1, dependents, answers), nothing.scatter(1, dependents, heads)


class Reader(nn.Module):
    """An encoder that tells masked words."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.stack = nn.Embedding(MASK + RELATIONS + 1, WIDTH), Stack(TOKENS, LAYERS, HEADS, WIDTH)
        self.norm, self.say = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, MASK)

    def forward(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [b, n, MASK], and the attention [b, heads of all layers, n, n]."""
        states, maps = self.stack(self.embed(words))
        return self.say(self.norm(states)), torch.cat(maps, dim=1)


@register("dependencies")
@dataclass(frozen=True, kw_only=True)
class Dependencies(Experiment):
    """Trains an encoder to tell words by others that they depend on, and asks its attention which these are.

    steps: of the training. texts: sentences that are asked about.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="What attention knows of relations",
        statement="Single heads find the word that another depends on far more often than any fixed distance does, and "
        "a probe of all heads' attention in both directions more often than their mean",
        paper="What Does BERT Look At? An Analysis of BERT's Attention, arXiv 1906.04341, sections 4.2 (heads) and 5 "
        "(probes)",
        setting="BERT-base, dependencies of the Penn Treebank and coreference",
        seconds=30,
        systems=(206,),
        differs="three relations between words of small kinds, masked at the dependents; one head is taken for all of "
        "them, as the probe is one for all",
        leaves_out="word embeddings in the probe, gradients by attention, and distances between heads",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("right heads by the best head of attention, less the best fixed distance, share", "best", "best_untrained",
             "the encoder before it is trained", above=0.2),
        Part("right heads by the probe, less the mean of all heads without weights, share", "probe", "probe_shuffled",
             "a probe trained on other sentences' heads", above=0.0),
    )  # fmt: skip

    steps: Steps = 400
    texts: Size = 200

    def draw(self, seed: int) -> dict[str, Any]:
        """Shares of one encoder."""
        chance = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Reader()
        known, held = (sentences(rows, chance) for rows in (TRAINED, self.texts))
        untrained = self.best(model, held)

        def loss() -> Tensor:
            words, answers, _ = sentences(ROWS, chance)
            return cross_entropy(model(words)[0].flatten(0, 1), answers.flatten(), ignore_index=-1)

        adam([*model.parameters()], loss, self.steps, RATE)
        best, fixed = self.best(model, held), distances(held[2])
        told = [right(probed(features(model, known[0]), where, features(model, held[0])), held[2])
                for where in (known[2], known[2][torch.randperm(TRAINED, generator=chance)])]  # fmt: skip
        mean = right(features(model, held[0]).mean(-1), held[2])
        with torch.no_grad():
            said = model(held[0])[0].argmax(-1)
        return {"measures": {
            "best": best - fixed, "best_untrained": untrained - fixed, "probe": told[0] - mean,
            "probe_shuffled": told[1] - mean, "best_alone": best, "fixed": fixed,
            "accuracy": float((said == held[1])[held[1] >= 0].float().mean()),
        }}  # fmt: skip

    def best(self, model: Reader, held: tuple[Tensor, Tensor, Tensor]) -> float:
        """The share of dependents whose head is what the best head of attention looks at most, themselves left
        out."""
        return max(right(one, held[2]) for one in features(model, held[0])[..., : LAYERS * HEADS].unbind(-1))


@torch.no_grad()
def features(model: Reader, words: Tensor) -> Tensor:
    """What all heads give from each word to each other and back, [b, n, n, 2 * heads]."""
    maps = model(words)[1]
    return torch.cat((maps, maps.transpose(2, 3)), dim=1).permute(0, 2, 3, 1)


def right(scores: Tensor, where: Tensor) -> float:
    """The share of dependents, those with `where [b, n]` not -1, whose best other word by scores [b, n, n] it is."""
    guess = scores.masked_fill(torch.eye(TOKENS, dtype=torch.bool), -torch.inf).argmax(-1)
    return float((guess == where)[where >= 0].float().mean())


def distances(where: Tensor) -> float:
    """The share of dependents that the best fixed distance finds."""
    apart = (where - torch.arange(TOKENS))[where >= 0]
    return max(float((apart == one).float().mean()) for one in range(1 - TOKENS, TOKENS))


def probed(known: Tensor, where: Tensor, held: Tensor) -> Tensor:
    """Scores [b, n, n] of held sentences by a sum of features with a weight each, fitted to where heads are in the
    known ones."""
    weights = torch.zeros(known.shape[-1], requires_grad=True)
    own = torch.eye(TOKENS, dtype=torch.bool)

    def loss() -> Tensor:
        scores = (known @ weights).masked_fill(own, -1e9)
        return cross_entropy(scores.flatten(0, 1), where.flatten(), ignore_index=-1)

    adam([weights], loss, PROBED, 0.1)
    return (held @ weights).detach()
