"""Gradient descent on attention separates the tokens it selects as a support vector machine does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le

from headwise.experiments import Experiment, ExperimentCard, Panel, Part, Size, Steps, register
from headwise.theory.fitting import generator

SWEEPS = 2000  # of the solver over all constraints
SHOWN = 40  # points of a line
SURE = 1e-9  # of 1 that attention to an optimal token may lack: beyond, doubles tell no slope


@dataclass(frozen=True)
class Problems:
    """Classification by one attention head with a fixed read-out, several at once.

    tokens [problems, texts, n, dim], queries [problems, texts, dim], gains [problems, texts, n]: what is gained by
    attending to each token, which is its class's sign times the read-out of it.
    """

    tokens: torch.Tensor
    queries: torch.Tensor
    gains: torch.Tensor

    def attention(self, weight: torch.Tensor) -> torch.Tensor:
        """[problems, texts, n] by combined weights [problems, dim, dim]."""
        return torch.softmax(self.scores(weight), dim=-1)

    def scores(self, weight: torch.Tensor) -> torch.Tensor:
        """A token's scores [problems, texts, n]."""
        return torch.einsum("ptnd,pde,pte->ptn", self.tokens, weight, self.queries)

    def loss(self, weight: torch.Tensor) -> torch.Tensor:
        """Logistic loss, the sum over problems."""
        margin = (self.attention(weight) * self.gains).sum(-1)
        return torch.nn.functional.softplus(-margin).mean(-1).sum()

    def margin(self, weight: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """By how much the chosen tokens' scores lie above all others' of their text, at least: [problems]."""
        scores = self.scores(weight)
        best = scores.gather(-1, chosen[..., None])
        others = scores.scatter(-1, chosen[..., None], -torch.inf)
        return (best - others.amax(-1, keepdim=True)).amin((1, 2))


@register("attention_svm")
@dataclass(frozen=True, kw_only=True)
class AttentionSVM(Experiment):
    """Descends from small weights and compares the direction with the solved machine's.

    problems: of a draw. texts, tokens, dim: of a problem. steps: of descent; rate: the length of each.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Attention as a support vector machine",
        statement="Descent on the combined weights of one attention head converges in direction to the hard-margin "
        "machine that separates optimal tokens from others by least Frobenius norm; on keys and queries apart, to that "
        "of least nuclear norm",
        paper="Transformers as Support Vector Machines, arXiv 2308.16898, abstract, (1) and (2); problem (Att-SVM)",
        setting="tokens, queries and read-out uniform on the sphere, 5 to 15 texts of 5 to 15 tokens, 1 to 20 "
        "channels, normalised gradient descent, machines solved by CVXPY",
        seconds=60,
        systems=(59,),
        differs="the machine is solved by its dual, one coordinate after the other; keys and queries descend without "
        "the vanishing regularisation under which the paper proves their norm, and where they select other tokens than "
        "the optimal ones, as the paper says may happen, norms are not compared",
        leaves_out="vanishing regularisation of keys and queries, and the solved machine of least nuclear norm",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("cosine of the combined weights and the solved machine", "cosine", "cosine_others",
             "the machine that selects other tokens, drawn at random", above=0.98),
        Part("least attention to an optimal token, mean over problems", "selected", "selected_before",
             "before descent", above=0.99),
        Part("nuclear norm at unit margin, keys and queries apart over combined", "nuclear", "nuclear_again",
             "combined weights from another start over combined", below=0.98),
    )  # fmt: skip
    panels: ClassVar[dict[str, Panel]] = {"direction": Panel("steps", "cosine to the machine", "x")}

    problems: Size = 4
    texts: Size = 5
    tokens: Size = 5
    dim: Size = 20
    steps: Steps = 800
    rate: Annotated[float, Ge(0.001), Le(10)] = 0.1

    def draw(self, seed: int) -> dict[str, Any]:
        """Cosines, attention and norms, means over the problems."""
        chance = generator(self.name, seed)
        made = self.made(chance)
        chosen = made.gains.argmax(-1)
        others = (chosen + torch.randint(1, self.tokens, chosen.shape, generator=chance)) % self.tokens
        machine = solved(made, chosen)
        line: list[list[float]] = []
        start = self.start(chance)
        combined = self.descended(made, (start,), machine, line)
        again = self.descended(made, (self.start(chance),), machine, [])
        apart = self.descended(made, (self.start(chance), self.start(chance)), machine, [])
        norms, margins = (
            {name: of(weight) for name, weight in {"combined": combined, "again": again, "apart": apart}.items()}
            for of in (lambda one: torch.linalg.matrix_norm(one, "nuc"), lambda one: made.margin(one, chosen))
        )
        # Norms are compared where all descents select the optimal tokens: of other tokens it is another machine.
        alike = torch.stack(list(margins.values())).amin(0) > 0
        unit = {name: norms[name] / margins[name] for name in norms}
        ratios = {name: (unit[name] / unit["combined"])[alike].mean() if alike.any() else torch.ones(())
                  for name in ("apart", "again")}  # fmt: skip
        attended = {name: made.attention(weight).gather(-1, chosen[..., None]).amin((1, 2)).mean()
                    for name, weight in {"selected": combined, "selected_before": start}.items()}  # fmt: skip
        return {
            "measures": {
                "cosine": float(cosine(combined, machine).mean()),
                "cosine_others": float(cosine(combined, solved(made, others)).mean()),
                **{name: float(value) for name, value in attended.items()},
                "alike": float(alike.double().mean()),
                "nuclear": float(ratios["apart"]),
                "nuclear_again": float(ratios["again"]),
            },
            "lines": {"direction": {"combined weights": line}},
        }

    def made(self, chance: torch.Generator) -> Problems:
        """Problems with everything on the sphere."""

        def sphere(*shape: int) -> torch.Tensor:
            drawn = torch.randn(*shape, self.dim, generator=chance, dtype=torch.float64)
            return drawn / drawn.norm(dim=-1, keepdim=True)

        tokens = sphere(self.problems, self.texts, self.tokens)
        sides = torch.randint(0, 2, (self.problems, self.texts, 1), generator=chance) * 2 - 1
        gains = torch.einsum("ptnd,pd->ptn", tokens, sphere(self.problems)) * sides
        return Problems(tokens, sphere(self.problems, self.texts), gains)

    def start(self, chance: torch.Generator) -> torch.Tensor:
        """Small weights."""
        return (
            0.1 * torch.randn(self.problems, self.dim, self.dim, generator=chance, dtype=torch.float64) / self.dim**0.5
        )

    def descended(
        self, made: Problems, start: tuple[torch.Tensor, ...], machine: torch.Tensor, line: list[list[float]]
    ) -> torch.Tensor:
        """Combined weights after steps of equal length down the gradient, for as long as attention is not as good as
        1. Two factors are both descended on, by steps at which their product gets about as far."""
        factors = [one.clone().requires_grad_() for one in start]
        rate = self.rate if len(factors) == 1 else (self.rate / self.steps) ** 0.5

        def combined() -> torch.Tensor:
            return factors[0] if len(factors) == 1 else factors[0] @ factors[1].transpose(-1, -2)

        with torch.enable_grad():
            for step in range(self.steps):
                slopes = torch.autograd.grad(made.loss(combined()), factors)
                lacks = 1 - made.attention(combined().detach()).amax(-1).amin(-1)
                moves = (lacks > SURE).double()[:, None, None]
                length = torch.stack([one.square().sum((1, 2)) for one in slopes]).sum(0).sqrt()[:, None, None]
                with torch.no_grad():
                    for factor, slope in zip(factors, slopes, strict=True):
                        factor -= rate * moves * slope / length.clamp(min=1e-250)
                    if (step + 1) % max(1, self.steps // SHOWN) == 0:
                        line.append([step + 1, float(cosine(combined(), machine).mean())])
        return combined().detach()


def solved(made: Problems, chosen: torch.Tensor) -> torch.Tensor:
    """The weights [problems, dim, dim] of least Frobenius norm whose margin at the chosen tokens is 1.

    Hildreth's method on the dual: each constraint's multiplier in turn takes the value at which it is just met.
    """
    problems, texts, tokens, dim = made.tokens.shape
    best = made.tokens.gather(2, chosen[..., None, None].expand(-1, -1, 1, dim))
    others = torch.stack([torch.stack([one[torch.arange(tokens) != pick] for one, pick in zip(*pair, strict=True)])
                          for pair in zip(made.tokens, chosen, strict=True)])  # fmt: skip
    apart = (best - others).reshape(problems, -1, dim)
    queries = made.queries.repeat_interleave(tokens - 1, dim=1)
    gram = (apart @ apart.transpose(1, 2)) * (queries @ queries.transpose(1, 2))
    multipliers = torch.zeros(problems, texts * (tokens - 1), dtype=torch.float64)
    for _ in range(SWEEPS):
        before = multipliers.clone()
        for place in range(multipliers.shape[1]):
            short = 1 - (gram[:, place] * multipliers).sum(-1)
            multipliers[:, place] = (multipliers[:, place] + short / gram[:, place, place]).clamp(min=0)
        if torch.allclose(before, multipliers, rtol=1e-10, atol=1e-12):
            break
    return torch.einsum("pc,pcd,pce->pde", multipliers, apart, queries)


def cosine(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Of matrices, by problem."""
    return torch.nn.functional.cosine_similarity(found.flatten(1), wanted.flatten(1), dim=-1)
