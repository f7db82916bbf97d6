"""Experts of attention and of feed-forward layers that several tasks share out among themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.nn import functional as F

from headwise.experiments import Experiment, ExperimentCard, Panel, Part, Seeds, Size, Steps, register
from headwise.theory.decoder import attention, seeded
from headwise.theory.fitting import adam, generator

WIDTH, HEAD, HIDDEN, EXPERTS, TOP, RATE = 32, 16, 32, 8, 2, 6e-3
CELLS, KINDS = 12, 4  # of a picture; colours, and glyphs
UNUSED = 0.01  # share of a task's choices below which an expert counts as not used by it


def colour(cells: Tensor) -> Tensor:
    """The commonest colour in pictures [rows, CELLS, 2]."""
    return F.one_hot(cells[..., 0], KINDS).sum(1).argmax(-1)


def glyph(cells: Tensor) -> Tensor:
    """The commonest glyph."""
    return F.one_hot(cells[..., 1], KINDS).sum(1).argmax(-1)


def both(cells: Tensor) -> Tensor:
    """How many cells have colour and glyph of one number, three and more being one class."""
    return (cells[..., 0] == cells[..., 1]).sum(1).clamp_max(KINDS - 1)


def first(cells: Tensor) -> Tensor:
    """The colour of the first cell."""
    return cells[:, 0, 0]


def last(cells: Tensor) -> Tensor:
    """The glyph of the last cell: the task that is added."""
    return cells[:, -1, 1]


TASKS = (colour, glyph, both, first)


class Routed(nn.Module):
    """A router a task, which chooses the best few experts of a token and weighs them."""

    def __init__(self) -> None:
        super().__init__()
        self.routers = nn.ModuleList(nn.Linear(WIDTH, EXPERTS, bias=False) for _ in TASKS)
        self.kept: dict[int, Tensor] = {}  # by task, the experts that are left to it, where some were removed

    def shares(self, x: Tensor, task: int) -> tuple[Tensor, Tensor]:
        """Weights of experts for `x [..., WIDTH]`, 0 of those not chosen, and the probabilities they come from."""
        scores = self.routers[task](x)
        if task in self.kept:
            scores = scores.masked_fill(~F.pad(self.kept[task], (0, scores.shape[-1] - EXPERTS)), -torch.inf)
        chances = scores.softmax(-1)
        best = chances.topk(TOP, dim=-1)
        return torch.zeros_like(chances).scatter(-1, best.indices, best.values), chances


class Attending(Routed):
    """Experts with queries and outputs of their own over shared keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.kv = nn.Linear(WIDTH, 2 * HEAD)
        self.asks = nn.ParameterList(torch.randn(WIDTH, HEAD) / WIDTH**0.5 for _ in range(EXPERTS))
        self.tells = nn.ParameterList(torch.randn(HEAD, WIDTH) / HEAD**0.5 for _ in range(EXPERTS))

    def forward(self, x: Tensor, task: int) -> tuple[Tensor, Tensor]:
        """What is read of `x [rows, cells, WIDTH]`, and the probabilities of experts."""
        shares, chances = self.shares(x, task)
        k, v = self.kv(x).chunk(2, dim=-1)
        told = [attention(x @ asks, k, v) @ tells for asks, tells in zip(self.asks, self.tells, strict=True)]
        return mixed(told, shares), chances

    def grow(self) -> list[nn.Parameter]:
        """Adds an expert."""
        self.asks.append(nn.Parameter(torch.randn(WIDTH, HEAD) / WIDTH**0.5))
        self.tells.append(nn.Parameter(torch.randn(HEAD, WIDTH) / HEAD**0.5))
        return [self.asks[-1], self.tells[-1]]


class Feeding(Routed):
    """Experts that are small feed-forward layers."""

    def __init__(self) -> None:
        super().__init__()
        self.ups = nn.ModuleList(nn.Linear(WIDTH, HIDDEN) for _ in range(EXPERTS))
        self.downs = nn.ModuleList(nn.Linear(HIDDEN, WIDTH) for _ in range(EXPERTS))

    def forward(self, x: Tensor, task: int) -> tuple[Tensor, Tensor]:
        """What is added to `x`, and the probabilities of experts."""
        shares, chances = self.shares(x, task)
        told = [down(F.gelu(up(x))) for up, down in zip(self.ups, self.downs, strict=True)]
        return mixed(told, shares), chances

    def grow(self) -> list[nn.Parameter]:
        """Adds an expert."""
        self.ups.append(nn.Linear(WIDTH, HIDDEN))
        self.downs.append(nn.Linear(HIDDEN, WIDTH))
        return [*self.ups[-1].parameters(), *self.downs[-1].parameters()]


class Squad(nn.Module):
    """A block of both kinds of experts over the cells of a picture, and a head a task."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(2 * KINDS, WIDTH)
        self.places = nn.Parameter(torch.randn(CELLS + 1, WIDTH) / 2)
        self.attend, self.feed = Attending(), Feeding()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(WIDTH, KINDS) for _ in TASKS)

    def forward(self, cells: Tensor, task: int) -> tuple[Tensor, list[Tensor]]:
        """Logits [rows, KINDS] of a task on pictures, and the probabilities of experts at both places."""
        seen = self.embed(cells[..., 0]) + self.embed(KINDS + cells[..., 1])
        x = F.pad(seen, (0, 0, 1, 0)) + self.places
        read, attends = self.attend(self.norms[0](x), task)
        x = x + read
        made, feeds = self.feed(self.norms[1](x), task)
        return self.heads[task](self.norms[2](x + made)[:, 0]), [attends, feeds]

    def added(self) -> list[nn.Parameter]:
        """What is trained for one task more: a router over all experts, an expert more, and a head."""
        fresh = [*self.attend.grow(), *self.feed.grow()]
        for routed in (self.attend, self.feed):
            routed.routers.append(nn.Linear(WIDTH, EXPERTS + 1, bias=False))
            fresh += list(routed.routers[-1].parameters())
        self.heads.append(nn.Linear(WIDTH, KINDS))
        return [*fresh, *self.heads[-1].parameters()]


@register("mod_squad")
@dataclass(frozen=True, kw_only=True)
class ModSquad(Experiment):
    """Trains a block of experts on four tasks, each with pictures of its own, with and without the loss that ties tasks
    to experts; removes what a task does not use; and adds a fifth task.

    steps: of training. batch: pictures of each task in a step. weight: of the loss that ties.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Mod-Squad",
        statement="With routers of each task and a loss of mutual information, tasks and experts come to belong "
        "together: what a task does not use can be removed, and a task that is added with experts of its own leaves "
        "the others as they are",
        paper="An Efficient General-Purpose Modular Vision Model via Multi-Task Heterogeneous Training, "
        "arXiv 2306.17165, section 3, and Mod-Squad, arXiv 2212.08066",
        setting="ViTs of 12 blocks, ImageNet, COCO and ADE20K, 15 attention and 16 feed-forward experts, top 6 and 4",
        seconds=40,
        systems=(27,),
        differs="one block over 12 cells with a colour and a glyph each; 8 experts at either place, the best 2 weigh "
        "in",
        leaves_out="pictures of natural things, detection and segmentation",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("mutual information of tasks and experts, share of the most there can be", "information",
             "information_untied", "without the loss that ties", above=0.5),
        Part("right answers lost where a task's unused experts are removed", "lost", "lost_used",
             "as many experts, those it uses most", below=0.01),
        Part("change of old tasks' logits as a task is added", "changed", "changed_free",
             "the old experts trained along", below=1e-9),
    )  # fmt: skip
    panels: ClassVar[dict[str, Panel]] = {"use of experts, by task": Panel("expert", "task")}
    seeds: Seeds = 3

    steps: Steps = 250
    batch: Size = 16
    weight: Annotated[float, Ge(0.0), Le(10.0)] = 1.0

    def draw(self, seed: int) -> dict[str, Any]:
        """What one seed's blocks do."""
        tied, untied = self.trained(seed, self.weight), self.trained(seed, 0.0)
        held = pictures(1024, generator(f"{self.name}/held", seed))
        with torch.no_grad():
            use, loose, right = used(tied, held), used(untied, held), self.right(tied, held)
            lost = {name: right - self.right(removed(tied, use, most), held)
                    for name, most in (("lost", False), ("lost_used", True))}  # fmt: skip
            tied.attend.kept, tied.feed.kept = {}, {}
        frozen, free = self.grown(tied, seed, False), self.grown(tied, seed, True)
        with torch.no_grad():
            old = logits(tied, held)
            return {
                "measures": {
                    "information": information(use), "information_untied": information(loose), **lost,
                    "changed": float((logits(frozen, held) - old).abs().max()),
                    "changed_free": float((logits(free, held) - old).abs().max()),
                    "right": right, "right_untied": self.right(untied, held),
                    "right_added": float((frozen(held, len(TASKS))[0].argmax(-1) == last(held)).float().mean()),
                    "unused": float((use < UNUSED).float().mean()),
                },
                "maps": {next(iter(self.panels)): use[0].tolist()},
            }  # fmt: skip

    def trained(self, seed: int, weight: float) -> Squad:
        """A block after training on all tasks, with the loss that ties them to experts weighed so."""
        chance, model = generator(self.name, seed), seeded(seed, Squad)

        def loss() -> Tensor:
            found, use = torch.zeros(()), []
            for task, answer in enumerate(TASKS):
                cells = pictures(self.batch, chance)
                told, chances = model(cells, task)
                found = found + F.cross_entropy(told, answer(cells))
                use.append(torch.stack([one.mean((0, 1)) for one in chances]))
            return found - weight * shared(torch.stack(use, 1)).sum()

        adam(list(model.parameters()), loss, self.steps, RATE)
        return model

    def grown(self, model: Squad, seed: int, free: bool) -> Squad:
        """A copy with one task more, trained on that one; free: the old experts as well."""
        other, chance = Squad(), generator(f"{self.name}/added", seed)
        other.load_state_dict(model.state_dict())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = other.added()

        def loss() -> Tensor:
            cells = pictures(self.batch, chance)
            return F.cross_entropy(other(cells, len(TASKS))[0], last(cells))

        adam(list(other.parameters()) if free else fresh, loss, self.steps // 2, RATE)
        return other

    def right(self, model: Squad, held: Tensor) -> float:
        """The share of right answers, the mean over tasks."""
        shares = [(model(held, task)[0].argmax(-1) == answer(held)).float().mean() for task, answer in enumerate(TASKS)]
        return float(torch.stack(shares).mean())


def mixed(told: list[Tensor], shares: Tensor) -> Tensor:
    """The sum of what experts tell, [..., WIDTH] each, by shares [..., experts or fewer]."""
    found = torch.zeros_like(told[0])
    for place in range(shares.shape[-1]):
        found = found + shares[..., place, None] * told[place]
    return found


def pictures(rows: int, chance: torch.Generator) -> Tensor:
    """Colours and glyphs of cells, [rows, CELLS, 2]."""
    return torch.randint(KINDS, (rows, CELLS, 2), generator=chance)


def used(model: Squad, cells: Tensor) -> Tensor:
    """The share of a task's choices that fall on each expert, [2, tasks, EXPERTS]."""
    found = []
    for task in range(len(TASKS)):
        chances = model(cells, task)[1]
        found.append(torch.stack([F.one_hot(one.topk(TOP, dim=-1).indices, EXPERTS).float().mean((0, 1, 2))
                                  for one in chances]))  # fmt: skip
    return torch.stack(found, 1)


def shared(use: Tensor) -> Tensor:
    """The mutual information of tasks, all alike, and experts, of shares [..., tasks, experts]; nats."""
    mean = use.mean(-2, keepdim=True)
    return (use * (use.clamp_min(1e-9) / mean.clamp_min(1e-9)).log()).sum(-1).mean(-1)


def information(use: Tensor) -> float:
    """The same as a share of the most there can be, the mean of both places."""
    return float(shared(use).mean()) / log(len(TASKS))


def removed(model: Squad, use: Tensor, most: bool) -> Squad:
    """The block without the experts that each task does not use; most: without as many that it uses most."""
    for routed, own in zip((model.attend, model.feed), use, strict=True):
        for task, shares in enumerate(own):
            count = min(int((shares < UNUSED).sum()), EXPERTS - TOP)
            out = shares.argsort(descending=most)[:count]
            routed.kept[task] = torch.ones(EXPERTS, dtype=torch.bool).index_fill(0, out, False)
    return model


def logits(model: Callable[..., Any], cells: Tensor) -> Tensor:
    """Those of all old tasks, [tasks, rows, KINDS]."""
    return torch.stack([model(cells, task)[0] for task in range(len(TASKS))])
