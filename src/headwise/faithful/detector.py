"""Which tokens of a passage a model is using, told from its attention to them: a logistic detector, fitted to answers
that are known (DAGCD, arXiv 2501.01059, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from headwise.choose import choose
from headwise.decoders import Decoder
from headwise.faithful.looks import Looks
from headwise.faithful.measured import known, planted, tokenizer_of
from headwise.observe import Recall
from headwise.seams.transformers.beside import Head
from headwise.seams.transformers.cache import Cache, PreTrainedModel
from headwise.shapes import Mark

RANK = 10  # a token that the model ranks no better than this is taken as not used


@dataclass(frozen=True)
class Detector:
    """Heads, the weight [heads] of each one's ratio, and the bias: above 0 in sum, a token is used."""

    heads: tuple[Head, ...]
    weights: torch.Tensor
    bias: float

    def used(self, ratios: torch.Tensor) -> torch.Tensor:
        """Which tokens are, bool [tokens], by their ratios [heads, tokens]."""
        return self.weights @ ratios + self.bias > 0

    def shares(self, ratios: torch.Tensor) -> torch.Tensor:
        """How much each token is used, [tokens]: its ratios, heads weighed by what they tell."""
        weights = self.weights.clamp(min=0)
        return (weights / weights.sum().clamp(min=1e-9)) @ ratios


def ratios(attention: torch.Tensor, inverse: torch.Tensor, count: int) -> torch.Tensor:
    """Of attention [heads, places] to places whose token is the inverse[place]-th of `count` different ones: the mean
    by token, as a share of the sum over tokens, [heads, count]."""
    sums = attention.new_zeros(len(attention), count).index_add(1, inverse, attention)
    means = sums / torch.bincount(inverse, minlength=count)
    return means / means.sum(1, keepdim=True).clamp(min=1e-8)


def detector(model: PreTrainedModel, heads: int) -> Detector:
    """The model's detector by its `heads` most telling heads; fitted once, and kept."""

    def fitted() -> dict[str, Any]:
        tokenizer = tokenizer_of(model, "dagcd fits its detector on text; load the model from a folder with one")
        features, labels = _examples(model, planted(tokenizer, 12))
        places = _fit(features, labels)[0].abs()
        best = choose(places[None], heads, torch.zeros(1, len(places), dtype=torch.bool))[0]
        weights, bias = _fit(features[:, best], labels)
        by_layer = [(layer, head) for layer, one in enumerate(Cache(model, "").seam.geometry.layers)
                    for head in range(one.query_heads)]  # fmt: skip
        return {"heads": [by_layer[place] for place in best.tolist()], "weights": weights.tolist(), "bias": bias}

    told = known(model, f"detector{heads}", fitted)
    return Detector(tuple((a, b) for a, b in told["heads"]), torch.tensor(told["weights"]), told["bias"])


def attention_of(looks: Looks, heads: tuple[Head, ...]) -> torch.Tensor:
    """The first look's attention [b, heads, n] of some heads."""
    layers = {layer: looks.attention(layer) for layer in {layer for layer, _ in heads}}
    return torch.stack([layers[layer][:, head] for layer, head in heads], dim=1)


class _Attending(Decoder):
    """Decides nothing; it has looks note attention to the context."""

    name, needs, neutral = "detector", frozenset({"context", "attention"}), ""

    def step(self, logits: torch.Tensor, looks: Looks) -> torch.Tensor:
        return logits.log_softmax(-1)


@torch.no_grad()
def _examples(model: PreTrainedModel, recalls: list[Recall]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ratios [examples, heads] of tokens at answers that are said, and whether each is the token said [examples]; of
    all others the tokens that the model did not think of, as many as it takes for both to weigh alike."""
    used, unused = [], []
    for recall in recalls:
        document, left = recall.ids, torch.zeros(1, dtype=torch.int64)
        base = Cache(model, "", marks=[Mark("context", 0, document.shape[1])])
        Looks(model, base, _Attending()).read(document, left)
        different, inverse = document[0].unique(return_inverse=True)
        for question, answer in recall.asked:
            looks, ids = Looks(model, base.fork(), _Attending()), torch.cat((document, question), 1)
            for token in answer[0]:
                logits = looks.read(ids, left)[0]
                heads = torch.cat([looks.attention(layer)[0] for layer in looks.geometry.attending])
                found = ratios(heads[:, : document.shape[1]], inverse, len(different)).T
                ranks = (logits[None] > logits[different][:, None]).sum(1)
                used.append(found[different == token])
                unused.append(found[(different != token) & (ranks >= RANK)])
                ids = torch.cat((ids, token.view(1, 1)), 1)
    said, others = torch.cat(used), torch.cat(unused)
    generator = torch.Generator().manual_seed(0)
    others = others[torch.randperm(len(others), generator=generator)[: len(said)]]
    labels = torch.cat((torch.ones(len(said)), torch.zeros(len(others))))
    return torch.cat((said, others)), labels


def _fit(features: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Weights and bias of a logistic regression with an L2 penalty on standardised features, told of the features as
    they are."""
    mean, spread = features.mean(0), features.std(0).clamp(min=1e-6)
    x = (features - mean) / spread
    w, b = torch.zeros(x.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([w, b], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        found = binary_cross_entropy_with_logits(x @ w + b, labels) + w.square().sum() / len(labels)
        found.backward()
        return found

    with torch.enable_grad():
        optimizer.step(loss)
    weights = w.detach() / spread
    return weights, float(b.detach() - weights @ mean)
