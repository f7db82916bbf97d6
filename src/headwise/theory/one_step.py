"""One layer of linear attention learns one step of gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le

from headwise.experiments import Experiment, ExperimentCard, Panel, Part, Size, Steps, register
from headwise.knobs import Weight
from headwise.theory.fitting import generator

STARTS = 3
NEURONS = 8  # of the network that makes responses which are not linear


@register("one_step_gd")
@dataclass(frozen=True, kw_only=True)
class OneStep(Experiment):
    """Trains linear attention on prompts of regression and compares what it learned with one step from zero.

    dim: of covariates. examples: of a prompt. noise: standard deviation of responses beside their line. prompts: it is
    trained on, as many again it is tested on. turns: of solving.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="One step of gradient descent",
        statement="The linear attention of one layer that predicts best in context takes one step of gradient descent "
        "from zero; preconditioned by the inverse covariance where covariates have one; also where responses are not "
        "linear",
        paper="One Step of Gradient Descent is Provably the Optimal In-Context Learner with One Layer of Linear "
        "Self-Attention, arXiv 2307.03576, Theorems 1, 2 and 3 (sections 3 to 5)",
        setting="standard normal covariates, any number of examples, noise of any variance; proofs, no runs",
        seconds=30,
        systems=(68,),
        differs="the minimum is found on a sample of prompts, by least squares in turn from three starts, where the "
        "paper finds that of the population; responses that are not linear are those of random ReLU networks of 8 "
        "neurons",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("loss beyond that of the best single step, share", "excess", "excess_shuffled",
             "trained on responses of other prompts", below=0.01),
        Part("with a covariance, loss beyond that of the best preconditioned step, share", "excess_covariance",
             "excess_plain", "the best step that is not preconditioned", below=0.01),
        Part("the learned matrix beside a multiple of the identity, share of its norm", "off_identity",
             "off_identity_shuffled", "trained on responses of other prompts", below=0.05),
        Part("with a covariance, beside a multiple of its inverse", "off_inverse", "off_inverse_identity",
             "the same matrix beside a multiple of the identity", below=0.05),
        Part("what the prediction has beside the step, share of its size", "beside", "beside_shuffled",
             "trained on responses of other prompts", below=0.05),
        Part("with responses that are not linear, beside a multiple of the identity", "off_curved",
             "off_identity_shuffled", "trained on responses of other prompts", below=0.05),
        Part("with responses that are not linear, loss beyond that of the best single step, share", "excess_curved",
             "excess_shuffled", "trained on responses of other prompts", below=0.01),
    )  # fmt: skip
    panels: ClassVar[dict[str, Panel]] = {
        "learned matrix": Panel("column", "row"),
        "learned matrix, with a covariance, times it": Panel("column", "row"),
        "trained on other prompts' responses": Panel("column", "row"),
    }

    dim: Annotated[int, Ge(2), Le(16)] = 4
    examples: Size = 20
    noise: Weight = 0.5
    prompts: Annotated[int, Ge(1000), Le(10**6)] = 80_000
    turns: Steps = 100

    def draw(self, seed: int) -> dict[str, Any]:
        """Losses and matrices of four layers: of plain prompts, with a covariance, curved, and shuffled."""
        chance = generator(self.name, seed)
        basis = torch.linalg.qr(torch.randn(self.dim, self.dim, generator=chance)).Q
        sigma = basis @ torch.diag(torch.logspace(-0.5, 0.5, self.dim)) @ basis.T
        plain = torch.eye(self.dim)
        kinds = {
            "": (plain, "line"),
            "_covariance": (sigma, "line"),
            "_curved": (plain, "curve"),
            "_shuffled": (plain, "line"),
        }
        measures: dict[str, float] = {}
        matrices = {}
        for name, (covariance, responses) in kinds.items():
            train, test = (self.prompts_of(covariance, responses, chance) for _ in range(2))
            if name == "_shuffled":
                train = train[0], train[1], train[2].roll(1)
            layer = self.trained(train, chance)
            if name == "_shuffled":
                train = self.prompts_of(covariance, responses, chance)
            inverse = torch.linalg.inv(covariance)
            step = best_step(train, test, inverse)
            matrices[name] = layer.matrix()
            measures[f"excess{name}"] = abs(float(loss(layer(test), test)) / step - 1)
            measures[f"off{name or '_identity'}"] = beside(matrices[name], inverse)
            if name in ("", "_shuffled"):
                measures[f"beside{name}"] = float((layer(test) - layer.step(test)).std() / layer(test).std())
            if name == "_covariance":
                measures["excess_plain"] = best_step(train, test, plain) / step - 1
                measures["off_inverse_identity"] = beside(matrices[name], plain)
        measures["off_inverse"] = measures.pop("off_covariance")
        measures["off_identity_shuffled"] = measures.pop("off_shuffled")
        maps = {"learned matrix": matrices[""], "learned matrix, with a covariance, times "
        "it": matrices["_covariance"] @ sigma,
                "trained on other prompts' responses": matrices["_shuffled"]}  # fmt: skip
        return {"measures": measures, "maps": {title: (one / one.abs().max()).tolist() for title, one in maps.items()}}

    def prompts_of(
        self, covariance: torch.Tensor, responses: str, chance: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The tokens' mean outer products [prompts, dim + 1, dim + 1], the query [prompts, dim] and its response."""
        root = torch.linalg.cholesky(covariance)
        shape = (self.prompts, self.examples + 1, self.dim)
        inputs = torch.randn(shape, generator=chance) @ root.T
        if responses == "line":
            line = torch.linalg.solve(root.T, torch.randn(self.dim, self.prompts, generator=chance)).T
            said = (inputs @ line[..., None])[..., 0]
        else:
            neurons = torch.randn(self.prompts, self.dim, NEURONS, generator=chance)
            out = torch.randn(self.prompts, NEURONS, 1, generator=chance) / NEURONS**0.5
            said = (torch.relu(inputs @ neurons) @ out)[..., 0]
        said = said + self.noise * torch.randn(said.shape, generator=chance)
        tokens = torch.cat([inputs, said[..., None]], dim=-1)[:, :-1]
        return tokens.transpose(1, 2) @ tokens / self.examples, inputs[:, -1], said[:, -1]

    def trained(self, prompts: tuple[torch.Tensor, ...], chance: torch.Generator) -> Layer:
        """The layer of least squares on these prompts: what it reads and by what it scores are solved for in turn, from
        several starts, of which the least loss is kept."""
        products, query, said = prompts
        # The loss is quadratic in the products of what is trained, so that the prompts are needed once.
        made = (products[..., None] * query[:, None, None]).flatten(1).double()
        wide = self.dim + 1
        gram = (made.T @ made / len(made)).view(wide, wide * self.dim, wide, wide * self.dim)
        pull = (made.T @ said.double() / len(made)).view(wide, wide * self.dim)
        best = None
        for _ in range(STARTS):
            out = torch.randn(wide, generator=chance, dtype=torch.float64)
            for _ in range(self.turns):
                score = torch.linalg.solve(torch.einsum("a,aibj,b->ij", out, gram, out), out @ pull)
                out = torch.linalg.solve(torch.einsum("i,aibj,j->ab", score, gram, score), pull @ score)
                score, out = score * out.norm(), out / out.norm()
            fall = float(out @ pull @ score)  # by how much the loss lies below that of predicting 0
            if best is None or fall > best[0]:
                best = fall, Layer(out.float(), score.view(wide, self.dim).float())
        assert best is not None
        return best[1]


@dataclass(frozen=True)
class Layer:
    """Linear self-attention as one number: out [dim + 1] reads the tokens that score [dim + 1, dim] finds by the query,
    whose own response is unknown."""

    out: torch.Tensor
    score: torch.Tensor

    def __call__(self, prompts: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Predictions [prompts]."""
        products, query, _ = prompts
        return ((products @ self.out) * (query @ self.score.T)).sum(-1)

    def matrix(self) -> torch.Tensor:
        """What stands between the examples' covariates, times their responses, and the query."""
        return self.out[-1] * self.score[:-1] + torch.outer(self.out[:-1], self.score[-1])

    def step(self, prompts: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The part of its predictions that is a step of gradient descent."""
        products, query, _ = prompts
        return ((products[:, :-1, -1] @ self.matrix()) * query).sum(-1)


def loss(found: torch.Tensor, prompts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Mean squared error."""
    return (found - prompts[2]).square().mean()


def best_step(train: tuple[torch.Tensor, ...], test: tuple[torch.Tensor, ...], preconditioner: torch.Tensor) -> float:
    """The loss of one step from zero, as long as is best on other prompts."""
    by_set = [((one[0][:, :-1, -1] @ preconditioner) * one[1]).sum(-1) for one in (train, test)]
    length = (by_set[0] * train[2]).mean() / by_set[0].square().mean()
    return float(loss(length * by_set[1], test))


def beside(matrix: torch.Tensor, wanted: torch.Tensor) -> float:
    """The norm of what a matrix has beside the nearest multiple of another, over its own."""
    multiple = (matrix * wanted).sum() / wanted.square().sum()
    return float((matrix - multiple * wanted).norm() / matrix.norm())
