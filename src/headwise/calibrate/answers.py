"""What a plan does to the answers about a document, beside dense attention: distributions, and answers still right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn.functional import kl_div, log_softmax

from headwise.calibrate.shelf import Batch, Mixture, Shelf, batches
from headwise.observe import Recall
from headwise.plan import Plan
from headwise.seams.transformers.cache import Cache, PreTrainedModel, attach
from headwise.seams.transformers.drive import forced_rows
from headwise.seams.transformers.forward import forward
from headwise.seams.transformers.replay import Recording, open_prompt, read_once

TELLING = 0.25  # of a document's answers


@dataclass(frozen=True)
class AnswerScore:
    """loss: nats by answer token, KL(dense || plan), the mean over the answers that count (`Answers.counted`). right:
    share of all answers greedily right. kept: answers right of those that dense attention has right, and how many
    these are."""

    loss: float
    right: float
    kept: tuple[int, int]


@dataclass(frozen=True)
class Answers:
    """A document as dense attention read it, on a shelf, and the logits [m, vocab] it gave at each answer's tokens."""

    recall: Recall
    shelf: Shelf
    expected: tuple[torch.Tensor, ...]

    @property
    def recording(self) -> Recording:
        """The document as dense attention read it."""
        return self.shelf.recording

    @cached_property
    def batches(self) -> tuple[Batch, ...]:
        """The questions as they are put together."""
        return batches(self.recall)

    @cached_property
    def known(self) -> tuple[bool, ...]:
        """By question, whether dense attention answers it greedily right."""
        return tuple(_right(found, answer) for found, (_, answer) in zip(self.expected, self.recall.asked, strict=True))

    @property
    def counted(self) -> tuple[bool, ...]:
        """By question, whether a plan's loss is told by it: where dense attention knows the answer, as what it guesses
        says little of what a plan forgets; where it knows none of a document, as of text that goes on, by all."""
        return self.known if any(self.known) else (True,) * len(self.known)

    @property
    def tells(self) -> bool:
        """Whether the document tells plans apart: dense attention knows a quarter of the answers, or it is one text
        that goes on, in which every token is told."""
        return len(self.known) == 1 or sum(self.known) >= TELLING * len(self.known)


def dense_answers(
    model: PreTrainedModel, recall: Recall, seed: int = 0, calibration: dict[str, torch.Tensor] | None = None
) -> Answers:
    """Read the document once and answer by dense attention. seed, calibration: of the shelf it is put on."""
    shelf = Shelf(model, read_once(model, recall.ids), seed, calibration or {})
    return Answers(recall, shelf, tuple(_mixed(shelf, Plan.uniform(attach(model).geometry, ""), batches(recall))))


def mixture_score(answers: Answers, plan: Plan) -> AnswerScore:
    """How `plan` answers, all questions in one forward, by what the document's shelf holds of its recipes."""
    return _score(answers, _mixed(answers.shelf, plan, answers.batches))


def answer_score(model: PreTrainedModel, plan: Plan | str, answers: Answers, seed: int = 0) -> AnswerScore:
    """How any plan answers in decoding steps, all questions in one batch after the document alone."""
    cache, asked = Cache(model, plan, seed=seed), answers.recall.asked
    open_prompt(model, cache, answers.recall.ids, answers.recording)
    said = forced_rows(model, cache, [torch.cat(pair, dim=1)[:, :-1] for pair in asked])
    return _score(answers, [own[-answer.shape[1] :] for own, (_, answer) in zip(said, asked, strict=True)])


def _score(answers: Answers, found: Sequence[torch.Tensor]) -> AnswerScore:
    """What answers of logits [m, vocab] are worth."""
    right = [_right(one, answer) for one, (_, answer) in zip(found, answers.recall.asked, strict=True)]
    told = zip(found, answers.expected, answers.counted, strict=True)
    losses = [divergence(ours, dense) for ours, dense, counts in told if counts]
    kept = sum(ours and dense for ours, dense in zip(right, answers.known, strict=True))
    return AnswerScore(sum(losses) / len(losses), sum(right) / len(right), (kept, sum(answers.known)))


def _right(found: torch.Tensor, answer: torch.Tensor) -> bool:
    """Whether greedy decoding would give the answer [1, m] by logits [m, vocab]."""
    return torch.equal(found.argmax(-1), answer[0])


def divergence(found: torch.Tensor, dense: torch.Tensor) -> float:
    """Nats by token of KL(dense || found), of logits [m, vocab]."""
    ours, theirs = (log_softmax(one.double(), dim=-1) for one in (found, dense))
    return float(kl_div(ours, theirs, log_target=True, reduction="none").sum(-1).clamp_min(0).mean())


def _mixed(shelf: Shelf, plan: Plan, packed: Sequence[Batch]) -> list[torch.Tensor]:
    """Logits [m, vocab] at every answer's tokens, by question, of batches that hold all questions."""
    found: dict[int, torch.Tensor] = {}
    for batch in packed:
        with torch.no_grad():
            logits = forward(shelf.model, Mixture(shelf, plan), batch.ids, logits_to_keep=batch.places).logits
        found |= zip(batch.rows, batch.said_of(logits), strict=True)
    return [found[row] for row in sorted(found)]
