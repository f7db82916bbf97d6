"""Steer: how the scores of named keys are changed in named heads while these are read. The verb is `edit`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from headwise.attention.view import View
from headwise.forms import Edit, Where
from headwise.methods import Method

WRONG_HEADS = (
    "Input should be `all`, or layers and heads with spaces between: '8', '8-15', '20.3' is head 3 of layer 20"
)


def _places(word: str) -> tuple[range, int | None]:
    """The layers that a word such as `8`, `8-15` or `20.3` names, and the query head; None: all of them."""
    layers, _, head = word.partition(".")
    first, _, last = layers.partition("-")
    numbers = [first, *([last] if "-" in layers else []), *([head] if "." in word else [])]
    if not all(one.isascii() and one.isdigit() and len(one) < 6 for one in numbers) or ("-" in layers and "." in word):
        raise PydanticCustomError("heads", WRONG_HEADS)
    return range(int(first), int(last or first) + 1), int(head) if head else None


def _heads(value: str) -> str:
    if not value.split() or (value.strip() != "all" and not all(len(_places(word)[0]) for word in value.split())):
        raise PydanticCustomError("heads", WRONG_HEADS)
    return " ".join(value.split())


Heads = Annotated[str, AfterValidator(_heads)]  # query heads, as a text holds them: "8-15 20.3"


@dataclass(frozen=True)
class Steer(Method):
    """Base of the steering methods.

    heads: the query heads that are steered: "all", or layers and heads such as "8-15 20.3", whose last word is head 3
    of layer 20.
    """

    heads: Heads = field(default="all", kw_only=True)

    # what it notes of a head, by name: sizes by letter, see `Select.noted`
    noted: ClassVar[Mapping[str, str]] = {}
    # whether the last query of a prompt is steered, and what is written after it, but none before
    last_only: ClassVar[bool] = False

    # the knobs that change nothing, by name
    at_rest: ClassVar[Mapping[str, float]]

    @property
    def neutral(self) -> bool:
        """Whether the knobs say to change nothing: the heads then read as if there were no steering."""
        return all(getattr(self, knob) == value for knob, value in self.at_rest.items())

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of marks that it steers; none where it finds its keys by itself."""
        return ()

    def named(self) -> Iterator[tuple[range, int | None]]:
        """Layers, and the query head of them or None for all, that `heads` names word by word; nothing for `all`."""
        yield from () if self.heads == "all" else map(_places, self.heads.split())

    def at(self, calibration: Mapping[str, torch.Tensor], layer: int, head: int) -> Steer | None:
        """The method for a KV head; None where it changes nothing there."""
        here = self.heads == "all" or any(layer in layers for layers, _ in self.named())
        return self if here and not self.neutral else None

    def steered(self, view: View, group: int) -> torch.Tensor:
        """Which query heads of a view, `group` for each KV head, are steered: bool [h, g]."""
        own = torch.full((len(view.heads), group), self.heads == "all", device=view.positions.device)
        for layers, query_head in self.named():
            if view.layer not in layers:
                continue
            if query_head is None:
                own[:] = True
            elif query_head // group in view.heads:
                own[view.heads.index(query_head // group), query_head % group] = True
        return own

    def marked(self, view: View, kind: str) -> torch.Tensor:
        """Which stored tokens lie in marks of a kind: bool [h, n]."""
        inside = torch.zeros_like(view.positions, dtype=torch.bool)
        for mark in view.marks:
            if mark.kind == kind:
                inside |= (view.positions >= mark.start) & (view.positions < mark.end)
        return inside

    def remember(self, view: View, where: Where) -> Mapping[str, Sequence[torch.Tensor]]:
        """What to note before the edit, of queries that saw `where` of the view's keys: by name, one tensor per head.
        Asked of methods that name "memory" in their needs, for every piece of a prompt."""
        return {}

    @abstractmethod
    def edit(self, view: View, group: int) -> Edit | None:
        """The change of the scores of the view's n keys, for `group` query heads of each KV head; None: there is
        nothing to change, and nothing is computed anew."""

    @abstractmethod
    def plain(self, scores: torch.Tensor, view: View, member: int) -> torch.Tensor:
        """The weights [t, n] that the queries of one head should give, from its scores [t, n], which are -inf where
        nothing is seen: a second derivation, in whole matrices, for tests. The view is of one KV head, the head is the
        member of its query heads."""
