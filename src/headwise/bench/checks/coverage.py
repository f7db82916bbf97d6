"""How much of the true attention a selection reads: measured while a model answers, against exact top-k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from headwise.attention.view import View
from headwise.choose import choose_mask
from headwise.errors import RecipeError
from headwise.forms import Where
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import Cache, PreTrainedModel
from headwise.seams.transformers.drive import feed, prefill


@dataclass
class Tally:
    """Sums over layers, heads and steps: attention mass on what was read and on the best tokens, as many; tokens read,
    tokens stored; and of what."""

    mass: float = 0.0
    best: float = 0.0
    read: float = 0.0
    stored: float = 0.0
    seen: float = 0.0

    def note(self, view: View, where: Where) -> None:
        """Add one selection."""
        t, n = view.queries.shape[2], view.count
        visible = where.dense(t, n, view.positions.device).expand(len(view.heads), -1, -1)
        weights = view.observe(t)
        self.mass += float((weights * visible[:, None]).sum())
        together = weights.sum((1, 2))
        best = choose_mask(together, visible.any(1).sum(1), torch.zeros_like(together, dtype=torch.bool))
        self.best += float((together * best).sum())
        self.seen += view.queries.shape[:3].numel()
        self.read += float(visible.any(1).sum())
        self.stored += len(view.heads) * n


@dataclass(frozen=True, eq=False)
class Watched:
    """A selection method that is followed, and whose every choice is tallied. Not registered: it is no method."""

    inner: Any
    tally: Tally = field(default_factory=Tally)

    @property
    def view_needs(self) -> frozenset[str]:
        """What the method asks for, and what its true attention is computed from."""
        return frozenset(self.inner.view_needs | {"keys", "queries"})

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "inner"), name)

    def pays(self, stored: int) -> bool:
        """Always, so that everything is tallied."""
        return True

    def remember(self, view: View) -> Mapping[str, Sequence[torch.Tensor]]:
        """The method's own notes."""
        noted: Mapping[str, Sequence[torch.Tensor]] = self.inner.remember(view)
        return noted

    def select(self, view: View) -> Where:
        """The method's own choice, tallied."""
        where: Where = self.inner.select(view)
        self.tally.note(view, where)
        return where


@dataclass(frozen=True)
class Coverage:
    """What a selection read of one document's questions: shares of the attention mass and of the stored tokens.

    recall: the mass over that of the best choice of as many tokens, one per KV head and step (exact top-k).
    """

    recipe: str
    mass: float
    recall: float
    read: float


def coverage(
    model: PreTrainedModel, recipe: str, ids: torch.Tensor, questions: Sequence[torch.Tensor], seed: int = 0
) -> Coverage:
    """Read `ids [1, n]` and then each of `questions [1, m]` on a fork, one token a step, selecting by `recipe`.

    The mass is of the attention over what the cache holds at that step, mean over layers, query heads and steps; later
    layers see what earlier ones made of a partial read, as in use. Raises RecipeError where nothing is selected.
    """
    parsed = Recipe.parse(recipe)
    if parsed.select is None:
        raise RecipeError(f"'{recipe}' selects nothing; add a part such as quest(1024)")
    if parsed.repositions:
        raise RecipeError(f"'{recipe}' reads at positions of its own, beside no true attention; give positions='true'")
    watched = Watched(parsed.select)
    cache = Cache(model, "")
    cache.plan = Plan.uniform(cache.seam.geometry, replace(parsed, select=watched), cache.seam.fingerprint)
    cache.seed = seed
    prefill(model, cache, ids)
    for question in questions:
        fork = cache.fork()
        for token in question.split(1, dim=1):
            feed(model, fork, token)
    tally = watched.tally
    return Coverage(recipe, tally.mass / tally.seen, tally.mass / tally.best, tally.read / tally.stored)


def table(rows: Sequence[Coverage]) -> str:
    """A table in Markdown, the one that reads most attention first."""
    lines = ["| selection | attention read | of the best choice | tokens read |", "| --- | ---: | ---: | ---: |"]
    lines += [
        f"| {row.recipe} | {row.mass:.1%} | {row.recall:.1%} | {row.read:.1%} |"
        for row in sorted(rows, key=lambda r: -r.mass)
    ]
    return "\n".join(lines)
