"""Small wrong methods, made of registered ones by putting something wrong in the place of one of their verbs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import headwise.cache.pages as paging
from headwise.attention import attend
from headwise.attention.view import View
from headwise.forms import Full, Scoring, Tokens, Weighted, Where, Window
from headwise.kernels.dispatch import noted
from headwise.registry import all_methods
from tests.methods.views import changed

Verb = Callable[..., Any]


@dataclass(frozen=True)
class Mutant:
    """The method called `method`, wrong.

    wrong: by name of a verb or a fact of the class, what to make of the one that is there. case: what a law is asked
    beside the name of the method. sentence: the recipe that a law is asked about, where a method alone is not enough.
    error: what the law fails with.
    """

    method: str
    wrong: Mapping[str, Callable[[Any], Any]]
    case: Mapping[str, Any] = field(default_factory=dict)
    sentence: str | None = None
    error: type[BaseException] = AssertionError


ONES = torch.ones(1, 1, 1, 16)


@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """The registered method is the wrong one, inside."""
    cls = all_methods()[mutant.method]
    with pytest.MonkeyPatch.context() as patch:
        for name, spoilt in mutant.wrong.items():
            patch.setattr(cls, name, spoilt(getattr(cls, name)))
        yield


def instead(fact: Any) -> Callable[[Any], Any]:
    """Another fact of the class, or another verb, whatever there was."""
    return lambda _: fact


def given(**granted: Any) -> Callable[[Verb], Verb]:
    """Sees something else than the view shows."""
    return lambda verb: lambda self, view: verb(self, changed(view, **granted))


def when(where: Where, wrong: Callable[[View], bool]) -> Callable[[Verb], Verb]:
    """Reads `where` for the views that are `wrong`."""
    return lambda verb: lambda self, view: where if wrong(view) else verb(self, view)


def always(where: Where) -> Callable[[Verb], Verb]:
    """Reads `where`, whatever it is asked."""
    return when(where, lambda view: True)


def by_calls(score: Verb) -> Verb:
    """Draws anew each time that it is asked, in any session."""
    calls = itertools.count()

    def drawn(self: Any, view: View) -> torch.Tensor:
        return torch.rand(view.positions.shape, generator=torch.Generator().manual_seed(next(calls)))

    return drawn


def hoarding(score: Verb) -> Verb:
    """Likes keys along the mean of all that it was ever shown, in any session, row and layer."""
    past: list[torch.Tensor] = []

    def liked(self: Any, view: View) -> torch.Tensor:
        past.append(view.keys.float().mean((0, 1)))
        return view.keys.float() @ torch.stack(past).mean(0)

    return liked


def by_backends(score: Verb) -> Verb:
    """Likes the contrary of itself where a backend beside the reference is asked."""

    def turned(self: Any, view: View) -> torch.Tensor:
        with noted() as records:
            attend(ONES, ONES[0], ONES[0], Full(), Scoring(1.0))
        return score(self, view) * (1 if records[0].backend == "reference" else -1)

    return turned


def of_the_next_head(score: Verb) -> Verb:
    """Each head takes the scores of the one before it."""
    return lambda self, view: score(self, view).roll(1, 0)


def beside(score: Verb) -> Verb:
    """Scores the tokens of each head by the keys of the one before it."""
    return lambda self, view: view.keys.float().sum(-1).roll(1, 0)


def unwritten(score: Verb) -> Verb:
    """Looks at memory that nobody has written."""

    def looked(self: Any, view: View) -> torch.Tensor:
        found, own = paging.fresh(view.positions.shape, torch.float32, torch.device("cpu")), score(self, view)
        return torch.where(found.isnan(), -own, own)

    return looked


def without_nan(score: Verb) -> Verb:
    """Takes what is broken for nothing."""
    return lambda self, view: score(self, view).nan_to_num()


def more(score: Verb) -> Verb:
    """Gives everything a little more than its due."""
    return lambda self, view: score(self, view) + 0.01


def more_than_told(rehearse: Verb) -> Verb:
    """Writes down a little more than it was told."""
    return lambda self, view, told: rehearse(self, view, told) + 0.01


def holding_on(score: Verb) -> Verb:
    """Keeps the keys that it was shown last."""

    def held(self: Any, view: View) -> torch.Tensor:
        object.__setattr__(self, "last_keys", view.keys.clone())
        return score(self, view)

    return held


def from_the_middle(score: Verb) -> Verb:
    """Likes the middle of what was there when it was asked."""
    return lambda self, view: -(view.positions - view.seen / 2).abs()


def by_entry(score: Verb) -> Verb:
    """Takes the place in the cache for the place in the text."""
    return lambda self, view: torch.arange(view.count).expand(view.positions.shape).double()


def at_entries(again: Verb) -> Verb:
    """Once tokens have left, takes the places that it noted in the text for places in the cache."""

    def read(self: Any, view: View, positions: Sequence[torch.Tensor], since: int) -> Tokens:
        whole = view.count == view.seen
        return again(self, view, positions, since) if whole else Tokens([one[one < view.count] for one in positions])

    return read


def half(wrong: Callable[[View], bool]) -> Callable[[Verb], Verb]:
    """Gives up every second token of those chosen, for the views that are `wrong`."""
    return lambda whole: lambda self, view, chosen: chosen & (view.positions % 2 == 0) if wrong(view) else chosen


def keeping(everything: Callable[[View], bool]) -> Callable[[Verb], Verb]:
    """Protects everything for some views, and nothing for the others."""
    return lambda protect: lambda self, view: torch.full(view.positions.shape, everything(view))


class Misdrawn(Tokens):
    """Says that the first token is read, whether it is or not."""

    def rows(self, *asked: Any, **device: Any) -> torch.Tensor:
        drawn = super().rows(*asked, **device).clone()
        drawn[..., 0] = True
        return drawn


def misdrawn(select: Verb) -> Verb:
    """Reads all that it chose but the first token, and draws that too."""
    return lambda self, view: Misdrawn([one[one > 0] for one in select(self, view).indices])


def counting_once(select: Verb) -> Verb:
    """Lets each token that it drew count for one, however likely it was."""

    def drawn(self: Any, view: View) -> Where:
        where = select(self, view)
        return Weighted(where.tokens, tuple(torch.zeros_like(one) for one in where.bias))

    return drawn


def spoiling_notes(select: Verb) -> Verb:
    """Turns the vectors that it noted around, in place."""

    def turned(self: Any, view: View) -> Where:
        where: Where = select(self, view)
        for vectors in view.memory.recall("vectors") or ():
            vectors.neg_()
        return where

    return turned


NEAR = Window(3)
COARSE = {"levels": instead(property(lambda self: (("int4/64", "int4/64"),)))}
KEYS = {"needs": lambda needs: needs | {"keys"}}
