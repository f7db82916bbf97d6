"""What is measured once of a model for arrangers: how much each slot is attended to; which heads find a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from headwise.context.arrangers.sentinel import looked_at
from headwise.context.asked import Asked
from headwise.context.looks import span_shares, spans_of
from headwise.context.material import Item
from headwise.context.shipped import Probe, Profile
from headwise.context.wording import wording_of
from headwise.errors import HeadwiseError
from headwise.seams.transformers.cache import PreTrainedModel, attach
from headwise.watch import Watch


def slot_profile(model: PreTrainedModel, tokenizer: Any, items: Sequence[Item], watch: Watch) -> tuple[Profile, float]:
    """The mean attention that a question's tokens give to each slot, over all orders that turn documents around, so
    that every document stands in every slot; and the rank correlation of the two halves of the items."""
    by_item = []
    for number, item in enumerate(items):
        asked = Asked(model, tokenizer, item.documents, item.question, item.wording or wording_of(tokenizer))
        turned = []
        for turn in range(len(item.documents)):
            watch("measuring slots", number * len(item.documents) + turn, len(items) * len(item.documents))
            pieces = asked.tokens(item.documents[turn:] + item.documents[:turn])
            shares = span_shares(model, torch.cat(pieces, dim=1), spans_of(pieces)[1:-1], pieces[-1].shape[1])
            turned.append(shares.mean((0, 1, 2)))
        by_item.append(torch.stack(turned).mean(0).double().numpy())
    slots = len(by_item[0])
    halves = [np.mean(by_item[i::2], axis=0) for i in range(2)]
    profile = [float(f"{one:.6g}") for one in np.mean(by_item, axis=0)]
    source = f"{len(items)} questions, their documents turned through all {slots} slots"
    return Profile(model=attach(model).fingerprint, slots={slots: profile}, source=source), rank_correlation(*halves)


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's, of values without ties."""
    first, second = one.argsort().argsort(), other.argsort().argsort()
    return float(np.corrcoef(first, second)[0, 1])


def labelled(
    model: PreTrainedModel, tokenizer: Any, items: Sequence[Item], watch: Watch
) -> list[tuple[torch.Tensor, list[bool]]]:
    """Of each item, the features [sentences, layers * heads] of its sentences, and which of them hold the answer."""
    found = []
    for number, item in enumerate(items):
        watch("looking at sentences", number, len(items))
        asked = Asked(model, tokenizer, item.documents, item.question, item.wording or wording_of(tokenizer))
        known, features = looked_at(asked)
        proof = item.proof.strip()
        proves = [place == item.gold and bool(proof) and _within(text, proof) for place, text in known]
        found.append((features, proves))
    return found


def _within(sentence: str, proof: str) -> bool:
    return proof.rstrip(".") in sentence or sentence.strip().rstrip(".") in proof


def train_probe(model: PreTrainedModel, told: Sequence[tuple[torch.Tensor, list[bool]]], source: str) -> Probe:
    """A logistic regression on standardised features, by scikit-learn, its scaling folded into the weights."""
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise HeadwiseError("a probe is trained by scikit-learn; pip install 'headwise[context]'") from None
    x = torch.cat([features for features, _ in told]).double().numpy()
    y = np.concatenate([proves for _, proves in told])
    if y.all() or not y.any():
        raise HeadwiseError("no sentence holds an answer, or all do; give other questions")
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000)).fit(
        x, y
    )
    scaler, line = fitted.steps[0][1], fitted.steps[1][1]
    weights = line.coef_[0] / scaler.scale_
    bias = float(line.intercept_[0] - (weights * scaler.mean_).sum())
    return Probe(
        model=attach(model).fingerprint, weights=[float(f"{w:.6g}") for w in weights], bias=bias, source=source
    )


def probe_auc(probe: Probe | None, told: Sequence[tuple[torch.Tensor, list[bool]]]) -> float:
    """The mean over questions of the share of pairs of a sentence that answers and one that does not which are put the
    right way round, ties half; without a probe, by the mean over all layers and heads."""
    found = []
    for features, proves in told:
        scores = features.mean(1) if probe is None else features @ torch.tensor(probe.weights)
        own, others = scores[torch.tensor(proves)], scores[~torch.tensor(proves)]
        if len(own) and len(others):
            gap = own[:, None] - others
            found.append(float(((gap > 0).float() + 0.5 * (gap == 0)).mean()))
    if not found:
        raise HeadwiseError("no question has both sentences that answer and others; give other questions")
    return sum(found) / len(found)
