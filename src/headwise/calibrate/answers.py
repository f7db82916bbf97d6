"""What a plan does to the answers about a document, beside dense attention: distributions, and answers still right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import kl_div, log_softmax

from headwise.observe import Recall
from headwise.plan import Plan
from headwise.seams.transformers.cache import Cache, PreTrainedModel
from headwise.seams.transformers.drive import forced
from headwise.seams.transformers.replay import Recording, open_prompt, read_once


@dataclass(frozen=True)
class AnswerScore:
    """loss: nats by answer token, KL(dense || plan), the mean over answers. right: share of answers greedily right."""

    loss: float
    right: float


@dataclass(frozen=True)
class Answers:
    """A document as dense attention read it, and the log probabilities [m, vocab] it gave at each answer's tokens."""

    recall: Recall
    recording: Recording
    expected: tuple[torch.Tensor, ...]


def dense_answers(model: PreTrainedModel, recall: Recall) -> Answers:
    """Read the document once and answer by dense attention."""
    recording = read_once(model, recall.ids)
    cache = Cache(model, "")
    open_prompt(model, cache, recall.ids, recording)
    return Answers(recall, recording, tuple(_answered(model, cache, recall)))


def answer_score(model: PreTrainedModel, plan: Plan | str, answers: Answers, seed: int = 0) -> AnswerScore:
    """How `plan` answers, each question on a fork of the cache made after the document alone."""
    cache = Cache(model, plan, seed=seed)
    open_prompt(model, cache, answers.recall.ids, answers.recording)
    found = list(_answered(model, cache, answers.recall))
    losses = [divergence(ours, dense) for ours, dense in zip(found, answers.expected, strict=True)]
    right = [
        torch.equal(one.argmax(-1), answer[0]) for one, (_, answer) in zip(found, answers.recall.asked, strict=True)
    ]
    return AnswerScore(sum(losses) / len(losses), sum(right) / len(right))


def divergence(found: torch.Tensor, dense: torch.Tensor) -> float:
    """Nats by token of KL(dense || found), of log probabilities [m, vocab]."""
    return float(kl_div(found, dense, log_target=True, reduction="none").sum(-1).clamp_min(0).mean())


def _answered(model: PreTrainedModel, cache: Cache, recall: Recall) -> Iterator[torch.Tensor]:
    """Log probabilities [m, vocab] at every answer's tokens, given question and answer so far, in decoding steps."""
    for question, answer in recall.asked:
        ids = torch.cat((question, answer), dim=1)[:, :-1]
        logits = torch.cat(list(forced(model, cache.fork(), ids)))
        yield log_softmax(logits[-answer.shape[1] :].double(), dim=-1)
