"""Select: which of the kept tokens each new token reads. Nothing is forgotten. The verb is `select`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch.nn.functional import pad

from headwise.attention.byproducts import column_mass
from headwise.attention.view import View
from headwise.choose import choose, choose_blocks
from headwise.forms import Causal, Tokens, Where
from headwise.knobs import NonNegative
from headwise.methods import Budgeted


@dataclass(frozen=True)
class Select(Budgeted):
    """Base of the selection methods; the budget counts stored tokens read per step.

    pays_from: stored tokens below which the method steps aside and everything is read, as choosing would cost more than
    it saves; "auto": as many as it takes by `breaks_even`. 0: it never does but when its budget covers everything.
    """

    pays_from: Literal["auto"] | NonNegative = field(default=0, kw_only=True)

    # stored tokens from which a step of 2,048 was measured quicker than dense attention; None: at no length, or never
    breaks_even: ClassVar[int | None] = None
    # what it notes of a head, by name: sizes by letter, after "int" for positions, which ascend, or "double"; n is any
    # number of things, s the number of those that several notes tell of
    noted: ClassVar[Mapping[str, str]] = {}
    learns: ClassVar[bool] = False  # whether it notes something of prompts, see `Learner`
    # whether a step depends on what later layers noted in the step before: drafted tokens are then not read together
    waits_for_layers: ClassVar[bool] = False

    def conflict(self) -> str | None:
        if self.amount.bytes is not None:
            return (
                f"budget {self.amount}: a selection holds nothing, it reads tokens; give a share such as 0.1 or tokens "
                "such as 1024, and bytes to an eviction"
            )
        if self.pays_from == "auto" and self.breaks_even is None:
            return (
                "pays_from='auto': it was not measured to be quicker than dense attention at any length; give a number "
                "of stored tokens"
            )
        return None

    @property
    def starts(self) -> int:
        """Stored tokens from which it chooses."""
        return int(self.breaks_even or 0) if self.pays_from == "auto" else int(self.pays_from)

    def pays(self, stored: int) -> bool:
        """Whether to select among `stored` tokens of a head; otherwise all are read, and the ledger says so."""
        return stored >= self.starts and self.amount.tokens_of(stored) < stored

    def chooser(self, layer: int) -> int:
        """The layer whose notes `layer` reads, which its heads have to have as well; usually its own."""
        return layer

    def remember(self, view: View) -> Mapping[str, Sequence[torch.Tensor]]:
        """What to note before this step's selection: by name, one tensor per head of the view.

        Called when the method names "memory" in its needs; later views show the newest note of each name, until the
        session goes back to before it was written. Stored tokens are noted by their true positions, as an eviction
        moves their storage indices.
        """
        return {}

    @property
    def repositions(self) -> bool:
        """Whether it reads prompts too, and at positions of its own; see `methods/repositioned.py`."""
        return False

    @abstractmethod
    def select(self, view: View) -> Where:
        """The stored entries that this step's queries (`view.queries`, the last t tokens) read."""

    def weights(self, view: View) -> torch.Tensor:
        """True attention weight of each stored token, mean over the group and the step's queries: [h, n] float32."""
        mass = column_mass(view.queries, view.keys, Causal(), view.scoring)
        return mass / view.queries.shape[1:3].numel()

    def best(self, view: View, scores: torch.Tensor) -> Tokens:
        """The stored tokens of highest `scores [h, n]` within the budget, and those always read."""
        return Tokens(choose(scores, self.amount.tokens_of(view.count), self.protect(view)))

    def best_blocks(self, view: View, scores: torch.Tensor, size: int, share: torch.Tensor | float = 1.0) -> Tokens:
        """The tokens of the best blocks of `size` entries within the budget, by `scores [h, blocks]` of the whole ones.

        share: what part of the budget (or how many times it) each head reads, [h] or the same for all. Blocks that hold
        a token always read are in, and so is the last one, which may be short.
        """
        stored = view.count
        scores = pad(scores, (0, -(-stored // size) - scores.shape[1]))
        protect = torch.zeros_like(scores, dtype=torch.bool)
        for own, (low, high) in zip(protect, view.cuts(self.sinks, view.seen - self.recent), strict=True):
            own[: -(-low // size)] = True
            own[high // size :] = True
        protect[:, -1] = True
        in_last = stored - (scores.shape[1] - 1) * size
        tokens = (torch.as_tensor(share, device=scores.device) * self.amount.tokens_of(stored)).long()
        counts = 1 + (tokens - in_last).div(size, rounding_mode="floor")
        return Tokens(choose_blocks(scores, counts.clamp(min=1), protect, size, stored))

    def again(self, view: View, positions: Sequence[torch.Tensor], since: int) -> Tokens:
        """The stored tokens at the noted `positions` (ascending) of each head, those from position `since` on, and
        those always read."""
        every = torch.arange(view.count, device=view.positions.device)
        lists = []
        cuts = view.cuts(self.sinks, min(since, view.seen - self.recent))
        for own, (low, end) in zip(view.entries(positions), cuts, strict=True):
            high = max(low, end)
            start, stop = torch.searchsorted(own, every.new_tensor((low, high))).tolist()
            lists.append(torch.cat((every[:low], own[start:stop], every[high:])))
        return Tokens(lists)

    def plain_again(self, view: View, positions: Sequence[torch.Tensor], since: int) -> Tokens:
        """The same as `again`, entry by entry."""
        lists, late = [], min(since, view.seen - self.recent)
        for own, noted in zip(view.positions.tolist(), positions, strict=True):
            wanted = set(noted.tolist())
            lists.append([j for j, p in enumerate(own) if p in wanted or p < self.sinks or p >= late])
        return Tokens([torch.tensor(one, dtype=torch.int64) for one in lists])


@dataclass(frozen=True)
class Summarised(Select):
    """Base of the methods that choose by summaries of blocks of keys, and name "summaries" in their needs."""

    @property
    def summary_size(self) -> int:
        """Stored tokens in a block that `summarise` is given; 1: every key by itself."""
        return 1

    @abstractmethod
    def summarise(self, view: View, blocks: torch.Tensor) -> torch.Tensor:
        """What `view.summaries` is to hold of new whole blocks of keys [h, m, size, d]: [h, m, ...].

        Called once for each block until stored tokens leave or move; it may use what the method noted or calibrated,
        and nothing else that changes.
        """


@dataclass(frozen=True)
class Learner(Select):
    """Base of the methods that note something of prompts, and name "memory" in their needs."""

    learns = True

    @abstractmethod
    def learn(self, view: View) -> Mapping[str, Sequence[torch.Tensor]]:
        """What to note of a prompt chunk, whose queries and keys the view shows; as `remember`, for prompts.

        Called after each chunk's tokens are stored.
        """


def stamp(view: View) -> list[torch.Tensor]:
    """The tokens seen now, for each head: a note of when a choice was made."""
    return [torch.tensor(view.seen)] * len(view.heads)


def positions_of(view: View, tokens: Tokens) -> list[torch.Tensor]:
    """True positions of chosen entries, one tensor per head: what a method notes of a choice."""
    return [own[index] for own, index in zip(view.positions, tokens.indices, strict=True)]
