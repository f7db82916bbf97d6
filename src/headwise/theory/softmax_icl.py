"""Two heads of softmax attention learn regression in context as a positive and a negative one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le

from headwise.experiments import Experiment, ExperimentCard, Panel, Part, Size, Steps, register
from headwise.knobs import Weight
from headwise.theory.fitting import adam, generator

TESTED = 5000  # prompts that losses are measured on
ARMS = ("two", "tied", "one", "shuffled")  # what is trained side by side


@dataclass(frozen=True)
class Heads:
    """Heads whose query-key weights are kq [arms, heads, dim + 1, dim] and whose output reads ov [arms, heads, dim + 1]
    of each token, a covariate and its response."""

    kq: torch.Tensor
    ov: torch.Tensor

    def predict(self, tokens: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        """[arms, prompts] of tokens [prompts, n, dim + 1] and queries [prompts, dim]."""
        arms, heads, wide, narrow = self.kq.shape
        toward = (query @ self.kq.reshape(-1, narrow).T).view(len(query), arms * heads, wide)
        weights = (tokens @ toward.transpose(1, 2)).softmax(1)
        said = tokens @ self.ov.reshape(-1, wide).T
        return (weights * said).sum(1).view(-1, arms, heads).sum(-1).T


@register("softmax_icl")
@dataclass(frozen=True, kw_only=True)
class SoftmaxICL(Experiment):
    """Trains one layer of attention on prompts of noisy linear regression, and looks at its weights.

    dim: of covariates. examples: of a prompt. noise: standard deviation. steps, batch: of training.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Regression in context by softmax attention",
        statement="Trained on linear regression in context, query-key weights become multiples of the identity and "
        "outputs read responses alone and sum to zero over heads; two heads predict better than one, and where prompts "
        "are longer than in training the loss does not rise, as that of linear attention does",
        paper="In-Context Linear Regression Demystified: Training Dynamics and Mechanistic Interpretability of "
        "Multi-Head Softmax Attention, arXiv 2503.12734, sections 3 (patterns), 4 (debiased gradient descent) and 5 "
        "(lengths)",
        setting="5 dimensions, 40 examples, noise of variance 0.1, 2 and more heads, Adam with rate 0.001, batches of "
        "256, 500 000 steps",
        seconds=120,
        systems=(14,),
        differs="query-key and output-value weights are trained as products, with a larger rate that falls to 0, for "
        "some hundred steps; linear attention sums over examples, and is the best such predictor, which has a closed "
        "form",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("query-key weights beside their diagonal, share of its norm", "off_diagonal", "off_diagonal_shuffled",
             "trained on responses that were shuffled", below=0.1),
        Part("spread of the diagonal, share of its mean", "uneven", "uneven_shuffled",
             "trained on responses that were shuffled", below=0.1),
        Part("outputs of all heads summed, share of the largest", "sum", "sum_one", "one head", below=0.1),
        Part("what outputs read of covariates, share of what they read of responses", "covariates",
             "covariates_shuffled", "trained on responses that were shuffled", below=0.1),
        Part("test loss of two heads over that of one", "two_over_one", "tied_over_one",
             "two heads of the same query-key weights", below=0.97),
        Part("loss on prompts twice as long over that at the trained length", "longer", "longer_linear",
             "linear attention", below=1.0),
    )  # fmt: skip
    panels: ClassVar[dict[str, Panel]] = {
        "query-key weights of a head": Panel("column", "row"),
        "loss by length": Panel("examples of a prompt", "loss", "xy"),
    }

    dim: Annotated[int, Ge(2), Le(16)] = 5
    examples: Size = 40
    noise: Weight = 0.316
    steps: Steps = 800
    batch: Annotated[int, Ge(16), Le(4096)] = 128

    def draw(self, seed: int) -> dict[str, Any]:
        """What four arms learned side by side, on the same prompts."""
        chance = generator(self.name, seed)
        heads = self.trained(chance)
        kq, ov = heads.kq[0], heads.ov[0]
        shuffled = ARMS.index("shuffled")
        lengths = [self.examples // 2, self.examples, 2 * self.examples]
        losses: dict[str, list[list[float]]] = {name: [] for name in (*ARMS, "linear")}
        step = linear_step(self.prompts(TESTED, self.examples, chance))
        for length in lengths:
            tokens, query, said = self.prompts(TESTED, length, chance)
            found = (heads.predict(tokens, query) - said).square().mean(-1)
            for name, loss in zip(ARMS, found.tolist(), strict=True):
                losses[name].append([length, loss])
            linear = step * (torch.einsum("pnd,pn->pd", tokens[..., :-1], tokens[..., -1]) * query).sum(-1)
            losses["linear"].append([length, float((linear - said).square().mean())])
        loss = {name: [point[1] for point in line] for name, line in losses.items()}
        largest, one = ov[:, -1].abs().max(), heads.ov[ARMS.index("one"), :, -1]
        return {
            "measures": {
                "off_diagonal": diagonal(kq)[0],
                "off_diagonal_shuffled": diagonal(heads.kq[shuffled])[0],
                "uneven": diagonal(kq)[1],
                "uneven_shuffled": diagonal(heads.kq[shuffled])[1],
                "sum": float(ov[:, -1].sum().abs() / largest),
                "sum_one": float(one.sum().abs() / one.abs().max()),
                "covariates": covariates(ov),
                "covariates_shuffled": covariates(heads.ov[shuffled]),
                "two_over_one": loss["two"][1] / loss["one"][1],
                "tied_over_one": loss["tied"][1] / loss["one"][1],
                "longer": loss["two"][2] / loss["two"][1],
                "longer_linear": loss["linear"][2] / loss["linear"][1],
            },
            "lines": {"loss by length": {name: losses[name] for name in ("two", "one", "linear")}},
            "maps": {"query-key weights of a head": (kq[0] / kq[0].abs().max()).tolist()},
        }  # fmt: skip

    def prompts(
        self, count: int, length: int, chance: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens [prompts, n, dim + 1], queries [prompts, dim] and their responses [prompts]."""
        inputs = torch.randn(count, length + 1, self.dim, generator=chance)
        line = torch.randn(count, self.dim, 1, generator=chance) / self.dim**0.5
        said = (inputs @ line)[..., 0] + self.noise * torch.randn(count, length + 1, generator=chance)
        return torch.cat([inputs, said[..., None]], dim=-1)[:, :-1], inputs[:, -1], said[:, -1]

    def trained(self, chance: torch.Generator) -> Heads:
        """All arms by Adam: two heads, two that share query-key weights, one, and two on shuffled responses."""
        kq = (0.1 * torch.randn(len(ARMS), 2, self.dim + 1, self.dim, generator=chance)).requires_grad_()
        ov = (0.1 * torch.randn(len(ARMS), 2, self.dim + 1, generator=chance)).requires_grad_()
        alone = torch.ones(len(ARMS), 2, 1)
        alone[ARMS.index("one"), 1] = 0

        def heads() -> Heads:
            tied = kq[ARMS.index("tied")]
            shared = tied[:1].expand(2, -1, -1)
            return Heads(torch.stack([kq[0], shared, kq[2], kq[3]]), ov * alone)

        def loss() -> torch.Tensor:
            tokens, query, said = self.prompts(self.batch, self.examples, chance)
            made = heads()
            plain = Heads(made.kq[:-1], made.ov[:-1]).predict(tokens, query)
            mixed = torch.cat([tokens[..., :-1], tokens[torch.randperm(self.batch, generator=chance), :, -1:]], dim=-1)
            wrong = Heads(made.kq[-1:], made.ov[-1:]).predict(mixed, query)
            return (torch.cat([plain, wrong]) - said).square().mean(-1).sum()

        adam([kq, ov], loss, self.steps, 0.02)
        with torch.no_grad():
            return heads()


def diagonal(kq: torch.Tensor) -> tuple[float, float]:
    """Of query-key weights [heads, dim + 1, dim]: their norm beside the diagonal over that of the diagonal, and the
    diagonal's spread over its mean; the larger of all heads."""
    found = []
    for head in kq:
        main = head[:-1].diagonal()
        beside = (head.square().sum() - main.square().sum()).clamp(min=0).sqrt()
        found.append((float(beside / main.norm()), float(main.std() / main.mean().abs())))
    return max(one[0] for one in found), max(one[1] for one in found)


def covariates(ov: torch.Tensor) -> float:
    """The norm of what outputs [heads, dim + 1] read of covariates over that of responses."""
    return float(ov[:, :-1].norm() / ov[:, -1].norm())


def linear_step(prompts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The step of the best linear attention, whose prediction is that times the sum of responses times products."""
    tokens, query, said = prompts
    made = (torch.einsum("pnd,pn->pd", tokens[..., :-1], tokens[..., -1]) * query).sum(-1)
    return (made * said).mean() / made.square().mean()
