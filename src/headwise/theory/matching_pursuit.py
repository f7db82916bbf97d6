"""A sparse autoencoder that encodes by matching pursuit, beside shallow ones, on atoms of two levels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor

from headwise.experiments import Experiment, ExperimentCard, Panel, Part, Size, Steps, register
from headwise.theory.fitting import generator

CHILDREN = 3  # of a parent
ACTIVE = 2  # atoms of a vector at most: a parent and a child
OFTEN = 0.8  # that one of a parent's children comes with it
BATCH, HELD, RATE = 256, 1024, 1e-2
LOOKED, UNUSED, SETTLED = 50, 0.1, 0.6  # steps between looks for atoms used less than so much of the mean; until when
FOUND = 0.9  # cosine from which on a planted atom counts as recovered
PENALTIES = (0.03, 0.1, 0.3)  # of the sum of codes that ReLU is trained with, the best of which it is judged by

Train = Callable[["Coder", Tensor, int], Tensor]
Encode = Callable[[Tensor, int], Tensor]  # vectors [n, dim] and how many atoms of each, to codes [n, atoms]


class Coder:
    """What all autoencoders share: atoms of unit length, and an encoder's own weights and biases, which pursuit does
    not use."""

    def __init__(self, atoms: int, dim: int, chance: torch.Generator) -> None:
        start = unit(torch.randn(atoms, dim, generator=chance))
        self.weights = [start.clone().requires_grad_(), start.clone().requires_grad_(),
                        torch.zeros(atoms, requires_grad=True)]  # fmt: skip

    @property
    def atoms(self) -> Tensor:
        """[atoms, dim]."""
        return unit(self.weights[0])

    @torch.no_grad()
    def revived(self, dead: Tensor, left: Tensor) -> None:
        """Atoms, bool [atoms], put where most is left of vectors [n, dim], each at another one."""
        worst = unit(left[left.norm(dim=1).topk(int(dead.sum())).indices])
        self.weights[0][dead], self.weights[1][dead], self.weights[2][dead] = worst, worst, 0.0

    def relu(self, x: Tensor, _: int) -> Tensor:
        """Codes of one layer, as many as come out positive."""
        return torch.relu(x @ self.weights[1].T + self.weights[2])

    def topk(self, x: Tensor, steps: int) -> Tensor:
        """The largest of these."""
        codes = self.relu(x, steps)
        best = codes.topk(min(steps, codes.shape[1]))
        return torch.zeros_like(codes).scatter(1, best.indices, best.values)

    def pursuit(self, x: Tensor, steps: int) -> Tensor:
        """Each step takes the atom of the largest product with what is left, of either sign, and what it explains."""
        codes, left, atoms = x.new_zeros(len(x), len(self.weights[0])), x, self.atoms
        for _ in range(steps):
            products = left @ atoms.T
            best = products.abs().argmax(1, keepdim=True)
            most = products.gather(1, best)
            left = left - most * atoms[best[:, 0]]
            codes = codes.scatter_add(1, best, most)
        return codes


@register("matching_pursuit")
@dataclass(frozen=True, kw_only=True)
class MatchingPursuit(Experiment):
    """Trains autoencoders of as many atoms as were planted, each on the same vectors: parents, and children that come
    with their parent alone and are orthogonal to it.

    parents: atoms of the upper level, with three children each. dim: of vectors. steps: of training.
    noise: of each channel.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Matching pursuit in a sparse autoencoder",
        statement="An autoencoder that picks atoms one after another from what is left never loses by a further step, "
        "works with other numbers of steps than it was trained with, and recovers atoms of two levels where ReLU and "
        "TopK recover fewer",
        paper="From Flat to Hierarchical: Extracting Sparse Representations with Matching Pursuit, arXiv 2506.03093, "
        "its encoder and its synthetic data",
        setting="drawn trees, then activations of vision and language models",
        seconds=60,
        systems=(264,),
        differs="the drawn tree is ours: a parent a vector, and with four of five a child; products of either sign, "
        "which recovered more than those above 0; of all autoencoders, atoms hardly used are put where most is left, "
        "in place of an auxiliary loss",
        leaves_out="activations of models",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("vectors whose residual grows by one of the steps, share", "grows", "grows_topk",
             "TopK's atoms added one after another, the largest first", below=0.001),
        Part("squared error with twice the steps of training over that with as many", "further", "further_topk",
             "TopK", below=0.9),
        Part("cosine of planted atoms with the nearest learnt ones, mean", "cosine", "cosine_rival",
             "the better of ReLU and TopK", above=0.9),
        Part("share of planted atoms recovered beyond the better of ReLU and TopK", "more", "more_flat",
             "atoms of one level, that come by themselves", above=0.1),
    )  # fmt: skip
    built = ("grows", "further")
    panels: ClassVar[dict[str, Panel]] = {"squared error": Panel("steps at inference", "of the vectors' squares", "y")}

    parents: Size = 8
    dim: Size = 32
    steps: Steps = 1500
    noise: Annotated[float, Ge(0.0), Le(1.0)] = 0.01

    def draw(self, seed: int) -> dict[str, Any]:
        """Figures of one tree, and of as many atoms without a tree."""
        chance = generator(self.name, seed)
        atoms, coders, held = self.fitted(chance, flat=False)
        flat, others, _ = self.fitted(chance, flat=True)
        pursuit, topk = coders["pursuit"], coders["topk"]
        lines = {
            name: [[steps, error(coder, encode, held, steps)] for steps in range(1, 2 * ACTIVE + 1)]
            for name, coder, encode in (("pursuit", pursuit, pursuit.pursuit), ("TopK", topk, topk.topk))
        }
        cosines = {name: nearest(coder, atoms) for name, coder in coders.items()}
        ahead = [self.ahead(*pair) for pair in ((coders, atoms), (others, flat))]
        return {
            "measures": {
                "grows": grown(pursuit, pursuit.pursuit, held, 2 * ACTIVE),
                "grows_topk": grown(topk, topk.topk, held, 2 * ACTIVE),
                "further": lines["pursuit"][-1][1] / lines["pursuit"][ACTIVE - 1][1],
                "further_topk": lines["TopK"][-1][1] / lines["TopK"][ACTIVE - 1][1],
                "cosine": float(cosines["pursuit"].mean()),
                "cosine_rival": max(float(own.mean()) for name, own in cosines.items() if name != "pursuit"),
                "more": ahead[0], "more_flat": ahead[1],
                **{f"recovered {name}": float((own > FOUND).float().mean()) for name, own in cosines.items()},
            },
            "lines": {"squared error": lines},
        }  # fmt: skip

    def fitted(self, chance: torch.Generator, flat: bool) -> tuple[Tensor, dict[str, Coder], Tensor]:
        """Planted atoms, autoencoders by name, and held out vectors."""
        parents = unit(torch.randn(self.parents, self.dim, generator=chance))
        children = torch.randn(self.parents, CHILDREN, self.dim, generator=chance)
        if not flat:
            children = children - (children @ parents[:, :, None]) * parents[:, None]
        atoms = torch.cat((parents, unit(children).flatten(0, 1)))
        start = int(torch.randint(2**31, (), generator=chance))
        found = {
            "pursuit": self.trained(atoms, flat, Coder.pursuit, 0.0, start),
            "topk": self.trained(atoms, flat, Coder.topk, 0.0, start),
            **{f"relu {weight}": self.trained(atoms, flat, Coder.relu, weight, start) for weight in PENALTIES},
        }
        return atoms, found, self.vectors(atoms, HELD, flat, chance)

    def vectors(self, atoms: Tensor, count: int, flat: bool, chance: torch.Generator) -> Tensor:
        """A parent of a size 1 to 2, most with a child of a size 0.5 to 1; `flat`: any two atoms of such sizes."""
        rows, sizes = torch.arange(count), torch.rand(count, ACTIVE, generator=chance)
        codes = torch.zeros(count, len(atoms))
        one = torch.randint(self.parents, (count,), generator=chance)
        two = self.parents + CHILDREN * one + torch.randint(CHILDREN, (count,), generator=chance)
        if flat:
            one, two = torch.rand(count, len(atoms), generator=chance).topk(ACTIVE).indices.unbind(1)
        codes[rows, one] = 1 + sizes[:, 0]
        codes[rows, two] = (torch.rand(count, generator=chance) < OFTEN) * (1 + sizes[:, 1]) / 2
        return codes @ atoms + self.noise * torch.randn(count, self.dim, generator=chance)

    def trained(self, atoms: Tensor, flat: bool, encode: Train, weight: float, start: int) -> Coder:
        """An autoencoder that gives vectors back, with a penalty on the sum of its codes."""
        chance = torch.Generator().manual_seed(start)
        coder, used = Coder(len(atoms), self.dim, chance), torch.zeros(len(atoms))
        optimiser = torch.optim.Adam(coder.weights[:1] if encode is Coder.pursuit else coder.weights, lr=RATE)
        with torch.enable_grad():
            for step in range(self.steps):
                optimiser.param_groups[0]["lr"] = RATE * (1 - step / self.steps)
                x = self.vectors(atoms, BATCH, flat, chance)
                codes = encode(coder, x, ACTIVE)
                left = x - codes @ coder.atoms
                loss = left.square().sum(1).mean() + weight * codes.sum(1).mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                used += (codes != 0).sum(0)
                if (step + 1) % LOOKED == 0:
                    if step < SETTLED * self.steps:
                        coder.revived(used < UNUSED * used.mean(), left.detach())
                    used.zero_()
        return coder

    def ahead(self, coders: dict[str, Coder], atoms: Tensor) -> float:
        """Of the planted atoms, the share that pursuit recovers beyond the best of the others."""
        shares = {name: float((nearest(coder, atoms) > FOUND).float().mean()) for name, coder in coders.items()}
        return shares.pop("pursuit") - max(shares.values())


def unit(x: Tensor) -> Tensor:
    """Vectors [..., dim] of length 1."""
    return x / x.norm(dim=-1, keepdim=True)


@torch.no_grad()
def nearest(coder: Coder, atoms: Tensor) -> Tensor:
    """The cosine of each planted atom with the learnt one that is nearest to it, [atoms]."""
    return (atoms @ coder.atoms.T).abs().amax(1)


@torch.no_grad()
def error(coder: Coder, encode: Encode, x: Tensor, steps: int) -> float:
    """Squares that are not given back, of all."""
    return float((encode(x, steps) @ coder.atoms - x).square().sum() / x.square().sum())


@torch.no_grad()
def grown(coder: Coder, encode: Encode, x: Tensor, steps: int) -> float:
    """The share of vectors of which some step leaves a larger residual than there was before it."""
    left = torch.stack([(encode(x, step) @ coder.atoms - x).norm(dim=1) for step in range(1, steps + 1)])
    return float((left.diff(dim=0) > 1e-5).any(0).float().mean())
