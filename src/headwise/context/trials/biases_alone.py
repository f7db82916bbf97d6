"""SGPT: a decoder becomes a retriever by training its biases alone, and means of its states that count later tokens
more."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from headwise.context.states import token_shares
from headwise.experiments import Experiment, ExperimentCard, Part, Size, Steps, register
from headwise.seams.transformers.cache import PreTrainedModel
from headwise.seams.transformers.small import small_decoder
from headwise.theory.fitting import adam, generator

THEMES, WORDS, NOISE, TOKENS = 16, 8, 64, 16  # words of a theme; words of none; tokens of a text
TOLD = 0.5  # share of tokens that are of one of the text's two themes
VOCABULARY, LAYERS, HEADS, WIDTH = THEMES * WORDS + NOISE, 2, 4, 64
TOPICS = torch.tensor(list(combinations(range(THEMES), 2)))  # a topic is a pair of themes
ROWS, RATE, TEMPERATURE = 32, 3e-3, 0.05
POOLS = ("weighted_mean", "mean", "last", "falling")


@register("biases_alone")
@dataclass(frozen=True, kw_only=True)
class BiasesAlone(Experiment):
    """Trains a small decoder to say the next word of texts on topics, then biases that are added to it, to tell texts
    of the same topic, once for every way of pooling; and retrieves texts of topics that the biases never saw.

    host_steps: of the decoder's training. steps: of the biases'. texts: that are searched, of a topic each.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="SGPT's weighted mean",
        statement="Trained by contrast on biases alone, a decoder retrieves more by means of its states that count "
        "later tokens more than by plain means",
        paper="SGPT: GPT Sentence Embeddings for Semantic Search, arXiv 2202.08904, its bi-encoder, and its code",
        setting="GPT-Neo and GPT-J, 0.1 % of the weights trained, on NLI and MS MARCO",
        seconds=60,
        systems=(227,),
        differs="two layers of 64 channels; biases are added to linear layers that have none; texts are drawn words",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("texts found first beyond those by the plain mean, share", "weighted", "falling",
             "a mean that counts earlier tokens more", above=0.0),
    )  # fmt: skip

    host_steps: Steps = 300
    steps: Steps = 100
    texts: Size = 64

    def draw(self, seed: int) -> dict[str, Any]:
        """Shares of texts that are found first."""
        chance = generator(self.name, seed)
        model = small_decoder(VOCABULARY, LAYERS, HEADS, WIDTH, seed)
        order = TOPICS[torch.randperm(len(TOPICS), generator=chance)]
        held, seen = order[: self.texts], order[self.texts :]
        self._speak(model, chance)
        found = {pool: self._found(model, pool, seen, held, seed) for pool in POOLS}
        return {"measures": {
            **{f"{pool}_recall": own for pool, own in found.items()},
            "weighted": found["weighted_mean"] - found["mean"], "falling": found["falling"] - found["mean"],
        }}  # fmt: skip

    def _speak(self, model: PreTrainedModel, chance: torch.Generator) -> None:
        def loss() -> torch.Tensor:
            ids = texts(TOPICS[torch.randint(len(TOPICS), (ROWS,), generator=chance)], chance)
            return cross_entropy(model(ids, use_cache=False).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

        adam(list(model.parameters()), loss, self.host_steps, RATE)
        model.requires_grad_(False)

    def _found(self, model: PreTrainedModel, pool: str, seen: torch.Tensor, held: torch.Tensor, seed: int) -> float:
        """After training of biases under one pooling, the share of held topics whose text is found by another one."""
        chance, biases = generator(f"{self.name}/biases", seed), []
        for layer in model.model.modules():
            if isinstance(layer, nn.Linear):
                layer.bias = nn.Parameter(torch.zeros(layer.out_features))
                biases.append(layer.bias)

        def scores(topics: torch.Tensor) -> torch.Tensor:
            one, other = (vectors(model, texts(topics, chance), pool) for _ in range(2))
            return one @ other.T / TEMPERATURE

        def loss() -> torch.Tensor:
            chosen = seen[torch.randperm(len(seen), generator=chance)[:ROWS]]
            return cross_entropy(scores(chosen), torch.arange(len(chosen)))

        adam(biases, loss, self.steps, RATE)
        with torch.no_grad():
            hits = [scores(held).argmax(1) == torch.arange(len(held)) for _ in range(4)]
        return float(torch.cat(hits).float().mean())


def texts(topics: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
    """A text [rows, tokens] on each topic [rows, 2]: half of its words are of its themes, the others of none."""
    shape = (len(topics), TOKENS)
    theme = topics.gather(1, torch.randint(2, shape, generator=chance))
    of_theme = theme * WORDS + torch.randint(WORDS, shape, generator=chance)
    of_none = torch.randint(THEMES * WORDS, VOCABULARY, shape, generator=chance)
    return torch.where(torch.rand(shape, generator=chance) < TOLD, of_theme, of_none)


def vectors(model: PreTrainedModel, ids: torch.Tensor, pool: str) -> torch.Tensor:
    """Of length 1, of texts [rows, tokens]: [rows, width]. falling: earlier tokens count more, as later ones do under
    `weighted_mean`."""
    states, live = model.model(ids, use_cache=False).last_hidden_state, torch.ones_like(ids, dtype=torch.bool)
    shares = token_shares(live, "weighted_mean" if pool == "falling" else pool)  # type: ignore[arg-type]
    shares = shares.flip(1) if pool == "falling" else shares
    return normalize((states * shares[..., None]).sum(1), dim=1)
