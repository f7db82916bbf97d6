"""Evict: which tokens each KV head keeps, for good. The verb is `score`; the engine chooses and frees the memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from headwise.attention.view import View
from headwise.methods import Budgeted
from headwise.methods.rehearsal import Rehearsal


@dataclass(frozen=True)
class Evict(Budgeted):
    """Base of the eviction methods. Their budget may also be bytes, such as "64MiB": what all heads that follow the
    recipe may hold together, of one sequence.

    notes: numbers that the method writes down about each token, see `note`. leaves_mean: whether what a head drops
    leaves a pair behind, its mean key and value, which is read with the weight of as many tokens.
    """

    notes: ClassVar[int] = 0
    leaves_mean: ClassVar[bool] = False

    @property
    def last_queries(self) -> int:
        """How many of the last queries the engine keeps for `view.queries` across steps (0: this step's are enough)."""
        return 0

    def governs(self, layer: int) -> bool:
        """Whether this method evicts in `layer` at all."""
        return True

    def at(self, calibration: Mapping[str, torch.Tensor], layer: int, head: int) -> Evict | None:
        """The method with the knobs of one KV head, told by the plan's tensors [layers, KV heads, ...]; None: the head
        keeps everything."""
        return self

    def note(self, view: View) -> torch.Tensor:
        """What to write down [h, n, notes] about each token, by default what is there; asked before every eviction,
        whether tokens go or not, of methods with `notes`. One that notes has the slow truth of it too, `plain_note`."""
        return view.notes

    @property
    def rehearsal(self) -> Rehearsal | None:
        """What the model reads again when a prompt has ended, before anything of it is evicted; None: nothing."""
        return None

    def rehearse(self, view: View, told: range) -> torch.Tensor:
        """What to write down [h, len(told), notes] about the tokens at positions `told`, by default nothing, when the
        model has just read them again; asked of methods with a `rehearsal`.

        The view shows what is stored and, after it, what was read now, which will not be stored: keys and positions of
        both, and the queries of the latter, whose last are those of the tokens `told`.
        """
        return torch.zeros(len(view.heads), len(told), self.notes, device=view.positions.device)

    @abstractmethod
    def score(self, view: View) -> torch.Tensor:
        """Importance [h, n] of each stored token, higher stays; NaN is refused, ±inf is fine."""

    def whole(self, view: View, chosen: torch.Tensor) -> torch.Tensor:
        """What really stays of the `chosen` bool [h, n], protected tokens apart: a method that keeps tokens by units
        gives up those that were not chosen as a whole."""
        return chosen

    def merged(self, view: View, stays: torch.Tensor) -> torch.Tensor | None:
        """Values [h, n, e] in which the tokens of `stays` bool [h, n] have taken in what the others lose; None: what
        leaves leaves no trace. Not asked where nothing leaves."""
        return None


@dataclass(frozen=True)
class Latest(Evict):
    """Base of the methods that keep a head's sinks and, of the rest, the latest tokens that the budget holds."""

    def score(self, view: View) -> torch.Tensor:
        """The position itself [h, n]: later stays."""
        return view.positions.double()

    def plain(self, view: View) -> torch.Tensor:
        """The same, entry by entry."""
        return torch.tensor([[float(p) for p in row] for row in view.positions.tolist()], dtype=torch.float64)
