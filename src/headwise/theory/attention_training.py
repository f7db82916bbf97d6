"""A classifier whose attention scores are moved against it while it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from headwise.experiments import Experiment, ExperimentCard, Part, Steps, register
from headwise.theory.fitting import adam, drawn, generator

WORDS, WIDTH, TOKENS = 64, 16, 16  # of a vocabulary of which a quarter speaks for a class; channels; of a text
ROWS, TESTED, RATE, RANDOM = 32, 512, 1e-2, 32  # RANDOM: moves at random that a worst one is compared with
ARMS = ("plain", "at", "iat", "noise")
Texts = tuple[Tensor, Tensor]  # words [n, TOKENS] and classes [n]


@dataclass
class Classifier:
    """Embeddings read by a recurrence of both neighbours, additive attention and a linear read-out."""

    words: Tensor
    mix: Tensor
    hidden: Tensor
    score: Tensor
    out: Tensor

    @classmethod
    def new(cls, chance: torch.Generator) -> Classifier:
        words = torch.randn(WORDS, WIDTH, generator=chance).requires_grad_()
        return cls(words, drawn(chance, 3 * WIDTH, WIDTH), drawn(chance, WIDTH, WIDTH // 2),
                   drawn(chance, WIDTH // 2, 1), drawn(chance, WIDTH, 1))  # fmt: skip

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained."""
        return list(vars(self).values())

    def states(self, embedded: Tensor) -> Tensor:
        """Of embedded words [n, TOKENS, WIDTH]: each with its neighbours."""
        around = [embedded.roll(1, 1), embedded, embedded.roll(-1, 1)]
        return torch.tanh(torch.cat(around, dim=-1) @ self.mix)

    def scores(self, states: Tensor) -> Tensor:
        """[n, TOKENS], before softmax."""
        return (torch.tanh(states @ self.hidden) @ self.score)[..., 0]

    def logit(self, states: Tensor, scores: Tensor) -> Tensor:
        """[n]"""
        return ((scores.softmax(-1)[..., None] * states).sum(1) @ self.out)[:, 0]


@register("attention_training")
@dataclass(frozen=True, kw_only=True)
class AttentionTraining(Experiment):
    """Texts of drawn words, some of which speak for one of two classes and the most for none; the class is what more
    of them speak for.

    steps: of training. size: of the moves that are trained against.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Attention iAT",
        statement="Moves of size 0 give ordinary training; worst moves have the size that is asked for and raise the "
        "loss more than moves at random; a classifier that is trained against moves along differences of its own "
        "scores attends more as its gradients say words matter",
        paper="Attention Meets Perturbations: Robust and Interpretable Attention with Adversarial Training, arXiv "
        "2009.12064, section 4, and its code",
        setting="reviews and news, bidirectional LSTMs, sizes of 5 (AT) and 10 to 30 (iAT)",
        seconds=10,
        systems=(38,),
        differs="words are drawn, and a window of three in the place of an LSTM; moves are along differences of the "
        "scores of one text's words, as the paper writes, where the code differs the texts of a batch",
        leaves_out="questions on texts, pairs of sentences, and texts of people",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("gradient of training with moves of size 0 beside twice the ordinary one, relative", "none", "none_moved",
             "moves of the size that is trained against", below=1e-5),
        Part("how far a move's length is from its size, largest", "length", "length_raw", "the gradient itself",
             below=1e-5),
        Part("loss under worst moves less that under as long ones at random, nats, the least of AT and iAT", "worst",
             "worst_away", "the worst moves the other way", above=0.0),
        Part("correlation of attention and gradients, iAT less training with moves at random, as long", "agree",
             "agree_plain", "ordinary training less that with moves at random", above=0.0),
    )  # fmt: skip

    steps: Steps = 300
    size: Annotated[float, Ge(0.0), Le(100.0)] = 2.0

    def draw(self, seed: int) -> dict[str, Any]:
        """Gradients, lengths, losses and correlations of classifiers from the same start."""
        held = texts(TESTED, generator(f"{self.name}/held", seed))
        models = {arm: self.trained(arm, seed) for arm in ARMS}
        plain, chance = models["plain"], generator(f"{self.name}/moves", seed)
        moves = {way: move(plain, held, way, self.size, chance) for way in ("at", "iat")}
        with torch.no_grad():
            losses = {way: (loss_of(plain, held, one), loss_of(plain, held, -one)) for way, one in moves.items()}
            lots = [loss_of(plain, held, move(plain, held, "noise", self.size, chance)) for _ in range(RANDOM)]
            at_random = torch.stack(lots).mean()
        agree = {arm: correlation(model, held) for arm, model in models.items()}
        right = {arm: accuracy(model, held) for arm, model in models.items()}
        return {"measures": {
            "none": gradient_gap(plain, held, 0.0), "none_moved": gradient_gap(plain, held, self.size),
            "length": max(float((one.norm(dim=-1) - self.size).abs().max()) for one in moves.values()),
            "length_raw": float((slope(plain, held).norm(dim=-1) - self.size).abs().max()),
            "worst": min(float(worst - at_random) for worst, _ in losses.values()),
            "worst_away": max(float(away - at_random) for _, away in losses.values()),
            "agree": agree["iat"] - agree["noise"], "agree_plain": agree["plain"] - agree["noise"],
            **{f"agree_{arm}": share for arm, share in agree.items() if arm != "plain"},
            **{f"right_{arm}": share for arm, share in right.items()},
        }}  # fmt: skip

    def trained(self, arm: str, seed: int) -> Classifier:
        """A classifier trained on its loss and on that under moves of its arm."""
        chance, lot = generator(self.name, seed), generator(f"{self.name}/lot", seed)
        model = Classifier.new(chance)

        def loss() -> Tensor:
            batch = texts(ROWS, chance)
            return both(model, batch, arm, self.size, lot) if arm != "plain" else loss_of(model, batch)

        adam(model.parameters, loss, self.steps, RATE)
        return model


def texts(rows: int, chance: torch.Generator) -> Texts:
    """Words, of which the first eighth speak for class 1 and the next for class 0, and classes."""
    words = torch.randint(WORDS, (rows, TOKENS), generator=chance)
    speaks = (words < WORDS // 8).int() - ((words >= WORDS // 8) & (words < WORDS // 4)).int()
    tie = torch.rand(rows, generator=chance) < 0.5
    return words, torch.where(speaks.sum(1) == 0, tie, speaks.sum(1) > 0).float()


def loss_of(model: Classifier, batch: Texts, moved: Tensor | float = 0.0) -> Tensor:
    """The loss where scores are moved."""
    states = model.states(model.words[batch[0]])
    return binary_cross_entropy_with_logits(model.logit(states, model.scores(states) + moved), batch[1])


def slope(model: Classifier, batch: Texts) -> Tensor:
    """The gradient of each text's loss with respect to its scores [n, TOKENS]."""
    with torch.enable_grad():
        states = model.states(model.words[batch[0]]).detach()
        scores = model.scores(states).detach().requires_grad_()
        loss = binary_cross_entropy_with_logits(model.logit(states, scores), batch[1], reduction="sum")
        return torch.autograd.grad(loss, scores)[0]


def move(model: Classifier, batch: Texts, way: str, size: float, chance: torch.Generator) -> Tensor:
    """Moves of scores [n, TOKENS] of a length: along the gradient; along the sum, weighed by the gradient, of
    normalised differences of the text's scores; or at random."""
    if way == "noise":
        return size * normalize(torch.randn(len(batch[0]), TOKENS, generator=chance), dim=-1)
    found = slope(model, batch)
    if way == "iat":
        with torch.no_grad():
            scores = model.scores(model.states(model.words[batch[0]]))
        apart = normalize(scores[:, None, :] - scores[:, :, None], dim=-1)  # from each word's score to all
        found = torch.einsum("nij,nij->nj", apart, apart * found[:, None])
    return size * normalize(found, dim=-1, eps=1e-30)


def both(model: Classifier, batch: Texts, way: str, size: float, chance: torch.Generator) -> Tensor:
    """The loss and that under moves."""
    return loss_of(model, batch) + loss_of(model, batch, move(model, batch, way, size, chance))


def gradient_gap(model: Classifier, batch: Texts, size: float) -> float:
    """How far the gradient with moves is from twice the ordinary one, relative."""
    with torch.enable_grad():
        moved = torch.autograd.grad(both(model, batch, "iat", size, torch.Generator()), model.parameters)
        plain = torch.autograd.grad(2 * loss_of(model, batch), model.parameters)
    far = sum(float((one - other).square().sum()) for one, other in zip(moved, plain, strict=True))
    return float((far / sum(float(one.square().sum()) for one in plain)) ** 0.5)


def correlation(model: Classifier, batch: Texts) -> float:
    """Pearson's, of a text's attention and the lengths of its words' gradients of the logit, the mean over texts."""
    with torch.enable_grad():
        embedded = model.words[batch[0]].detach().requires_grad_()
        states = model.states(embedded)
        scores = model.scores(states)
        found = torch.autograd.grad(model.logit(states, scores).sum(), embedded)[0].norm(dim=-1)
    stacked = [one - one.mean(-1, keepdim=True) for one in (scores.softmax(-1).detach(), found)]
    return float((normalize(stacked[0], dim=-1) * normalize(stacked[1], dim=-1)).sum(-1).mean())


@torch.no_grad()
def accuracy(model: Classifier, batch: Texts) -> float:
    """Share of right classes."""
    states = model.states(model.words[batch[0]])
    return float(((model.logit(states, model.scores(states)) > 0) == (batch[1] > 0)).float().mean())
