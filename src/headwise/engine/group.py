"""The heads of a layer that follow one recipe with their store, and what all layers of one step share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import starmap
from typing import Any, Literal

import torch

from headwise.cache.evicted_mean import EvictedMean
from headwise.cache.journal import Checkpoint
from headwise.cache.kv_store import KVStore
from headwise.engine.reader import Reader
from headwise.engine.recent import Recent
from headwise.methods.rehearsal import Rehearsal
from headwise.recipe import Recipe

Phase = Literal["prefill", "decode"]
DECODE_INTERVAL = 64  # decode steps between evictions: scoring every step would cost as much as attention itself


@dataclass(frozen=True)
class Step:
    """One step of all layers: `tokens` new ones per row, of which the last `live[row]` are not left padding.

    seen: tokens passed by row, these included. total: by row, the prompt length that budgets refer to.
    """

    number: int
    phase: Phase
    tokens: int
    live: tuple[int, ...]
    seen: tuple[int, ...]
    total: tuple[int, ...]
    evicts: bool

    @property
    def decodes(self) -> bool:
        """Whether the new tokens are decoded, and no prompt."""
        return self.phase == "decode"

    @cached_property
    def padded(self) -> bool:
        """Whether any row has padding in this step."""
        return any(count < self.tokens for count in self.live)

    @cached_property
    def positions(self) -> torch.Tensor:
        """True positions [b, t] of the new tokens; those of padding mean nothing."""
        return torch.tensor(self.seen)[:, None] - torch.arange(self.tokens, 0, -1)


@dataclass
class Group:
    """KV heads `heads` of `layer` under one recipe. A lane of the store is one of these heads in one batch row.

    planned, since: by row, tokens per head that the plan kept at the last eviction, and tokens appended after it.
    passed: by row, tokens passed. tails: by row, the last queries [heads, g, w, d], where a method remembers some.
    uncounted: by row, the last queries whose attention mass is not in the store yet; the next eviction adds it.
    lses: by row, the log-sum-exp [heads, g, w] with which those queries read, in groups that read all there is.
    evicted_mean: of what was evicted, where the method leaves one.
    reader: the short way of decoding steps, where all that the store holds lies in pools in memory.
    """

    layer: int
    heads: tuple[int, ...]
    recipe: Recipe
    store: KVStore
    planned: list[int]
    since: list[int]
    passed: list[int]
    tails: dict[int, Recent] = field(default_factory=dict)
    uncounted: dict[int, Recent] = field(default_factory=dict)
    lses: dict[int, Recent] = field(default_factory=dict)
    evicted_mean: EvictedMean | None = None

    def __post_init__(self) -> None:
        self.reader = Reader([self.store], [self.heads]) if self.store.pools() else None

    def row_of(self, lane: int) -> int:
        """The batch row of a lane."""
        return lane // len(self.heads)

    def lanes(self, row: int) -> range:
        """The lanes of a batch row, in the order of `heads`."""
        return range(row * len(self.heads), (row + 1) * len(self.heads))

    def runs(self, by_row: bool) -> list[range]:
        """Neighbouring lanes that hold equally many tokens; cut at batch rows when `by_row`."""
        if not by_row or len(self.planned) == 1:
            return list(starmap(range, self.store.runs()))
        runs: list[range] = []
        for first, last in self.store.runs():
            rows = range(self.row_of(first), self.row_of(last - 1) + 1)
            cuts = [max(first, self.lanes(row).start) for row in rows]
            runs += [range(a, b) for a, b in zip(cuts, [*cuts[1:], last], strict=True)]
        return runs

    def looks(self, phase: Phase) -> bool:
        """Whether a part of the recipe looks at a view, which is of one row, in this phase."""
        if self.recipe.steer is not None:
            return True
        if phase == "prefill":
            return self.recipe.prefill is not None or self.recipe.repositions
        return self.recipe.select is not None

    @cached_property
    def reads_all(self) -> bool:
        """Whether new tokens read everything that is stored, in pools in memory, and nothing else."""
        others = (self.recipe.select, self.recipe.steer, self.evicted_mean)
        return self.reader is not None and all(one is None for one in others)

    @cached_property
    def verbatim(self) -> bool:
        """Whether tokens lie in one pool in memory bit for bit as they came."""
        pools = self.store.pools()
        return len(pools) == 1 and set(pools[0].shape.codecs) == {"plain"}

    @cached_property
    def repositions(self) -> bool:
        """Whether what is read is placed at positions of its own."""
        return self.recipe.repositions

    @cached_property
    def learns(self) -> bool:
        """Whether the recipe's selection notes something of prompts."""
        return self.recipe.select is not None and self.recipe.select.learns

    @cached_property
    def counts_mass(self) -> bool:
        """Whether the recipe's eviction uses accumulated attention mass."""
        return self.recipe.evict is not None and "mass" in self.recipe.evict.view_needs

    @cached_property
    def keeps_lse(self) -> bool:
        """Whether queries whose mass is counted wait with the log-sum-exp that they read with: they read all that is
        stored and nothing else, in the form in which it is stored."""
        parts = (self.recipe.prefill, self.recipe.compress, self.recipe.select, self.recipe.steer, self.evicted_mean)
        return self.counts_mass and all(part is None for part in parts)

    @cached_property
    def rehearsal(self) -> Rehearsal | None:
        """What the recipe's eviction lets the model read again before it evicts from a prompt."""
        return self.recipe.evict.rehearsal if self.recipe.evict is not None else None

    @cached_property
    def looks_back(self) -> bool:
        """Whether queries are kept for an eviction or a compression to come."""
        return self.last_queries > 0 or self.counts_mass

    @cached_property
    def place(self) -> slice | torch.Tensor:
        """The heads as an index of KV heads; a slice, which copies nothing, where they are neighbours."""
        first, last = self.heads[0], self.heads[-1] + 1
        return slice(first, last) if self.heads == (*range(first, last),) else torch.tensor(self.heads)

    @cached_property
    def last_queries(self) -> int:
        """Last queries that the recipe's eviction or compression wants to see again in later steps."""
        return max((part.last_queries for part in self.looking), default=0)

    @cached_property
    def looking(self) -> list[Any]:
        """The parts of the recipe that look at last queries: its eviction and its compression."""
        return [part for part in (self.recipe.evict, self.recipe.compress) if part is not None]

    def remember(self, step: Step, q: torch.Tensor, lse: torch.Tensor | None) -> None:
        """Keep of a step's queries q [lanes, g, t, d], with their lse [lanes, g, t] where it is kept, those that are
        looked at later."""
        for row, live in enumerate(step.live):
            lanes, new = slice(self.lanes(row).start, self.lanes(row).stop), slice(step.tokens - live, None)
            if self.last_queries:
                self._keep(self.tails, row, q[lanes, :, new], self.last_queries)
            if self.counts_mass:  # the next eviction counts it
                self._keep(self.uncounted, row, q[lanes, :, new])
                if lse is not None:
                    self._keep(self.lses, row, lse[lanes, :, new])

    def _keep(self, kept: dict[int, Recent], row: int, new: torch.Tensor, most: int | None = None) -> None:
        past = kept.get(row)
        if past is None:
            kept[row] = Recent.of(new if most is None else new[:, :, -most:])
        else:
            kept[row] = past.add(new, most)

    def queries_of(self, step: Step, q: torch.Tensor) -> list[torch.Tensor]:
        """The queries that an eviction in this step may look at, [heads, g, w, d] by row: the step's own, q [lanes, g,
        t, d], with remembered ones before; as many, however many tokens come in one step. They were `remember`ed."""
        queries = []
        for row, live in enumerate(step.live):
            lanes, new = slice(self.lanes(row).start, self.lanes(row).stop), slice(step.tokens - live, None)
            queries.append(self.tails[row].all if live < self.last_queries else q[lanes, :, new])
        return queries

    def evicts_of(self, step: Step, window: int | None) -> bool:
        """Whether an eviction is due in this step though prompts are gathered: of a prompt once it has come to its end;
        windows pass before."""
        if step.phase == "decode" or window is not None or self.recipe.evict is None:
            return True
        return all(seen >= total for seen, total in zip(step.seen, step.total, strict=True))

    @property
    def later_bytes(self) -> int:
        """Bytes of what is kept of queries for later."""
        return sum(one.nbytes for kept in (self.tails, self.uncounted, self.lses) for one in kept.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the real storages: the store, the queries kept for later and the mean of what was evicted."""
        held = self.store.nbytes
        if self.tails or self.uncounted:
            held += self.later_bytes
        return held if self.evicted_mean is None else held + self.evicted_mean.nbytes

    def predicted_bytes(self) -> int:
        """What the plan says these heads take now: planned and later tokens in whole pages, queries kept for
        later, and what the selection has made of the keys."""
        split = self.recipe.compress.split if self.recipe.compress else lambda kept, later: (kept + later,)
        by_level = [split(*pair) for pair in zip(self.planned, self.since, strict=True) for _ in self.heads]
        total = self.store.predicted(by_level) + self.later_bytes
        return total + self.store.summaries.nbytes + (self.evicted_mean.nbytes if self.evicted_mean is not None else 0)

    def truncate(self, limits: list[int]) -> None:
        """Forget tokens at positions >= limits[row], and their queries where they are kept."""
        by_lane = [limit for limit in limits for _ in self.heads]
        self.store.truncate(by_lane)
        if self.evicted_mean is not None:
            self.evicted_mean.truncate(by_lane)
        for kept in (self.tails, self.uncounted, self.lses):
            for row, queries in kept.items():
                kept[row] = queries.without_last(max(0, self.passed[row] - limits[row]))
        self.passed = [min(have, limit) for have, limit in zip(self.passed, limits, strict=True)]
        for row in range(len(limits)):
            stored = -(-sum(self.store.lengths[lane] for lane in self.lanes(row)) // len(self.heads))
            self.planned[row] = min(self.planned[row], stored)
            self.since[row] = stored - self.planned[row]

    def checkpoint(self) -> Checkpoint:
        """A state to go back to while it is held."""
        counts = list(self.planned), list(self.since), list(self.passed)
        queries = dict(self.tails), dict(self.uncounted), dict(self.lses)
        mean = self.evicted_mean

        def back() -> None:
            self.planned, self.since, self.passed = counts
            self.tails, self.uncounted, self.lses = queries
            self.evicted_mean = mean

        return self.store.checkpoint() + Checkpoint((), (back,))

    def select(self, rows: Sequence[int]) -> None:
        """Go on with copies of these batch rows, in their order; a row may come several times."""
        lanes = [lane for row in rows for lane in self.lanes(row)]
        self.store.select(lanes)
        if self.evicted_mean is not None:
            self.evicted_mean = self.evicted_mean.select(lanes)
        self.planned, self.since, self.passed = (
            [counts[row] for row in rows] for counts in (self.planned, self.since, self.passed)
        )
        self.tails, self.uncounted, self.lses = (
            {new: kept[row].copy() for new, row in enumerate(rows) if row in kept}
            for kept in (self.tails, self.uncounted, self.lses)
        )

    def fork(self, store: KVStore | None = None) -> Group:
        """An independent copy, over `store` where a copy of its store is at hand."""
        return replace(
            self,
            store=self.store.fork() if store is None else store,
            planned=list(self.planned),
            since=list(self.since),
            passed=list(self.passed),
            tails={row: one.copy() for row, one in self.tails.items()},
            uncounted={row: one.copy() for row, one in self.uncounted.items()},
            lses={row: one.copy() for row, one in self.lses.items()},
            evicted_mean=self.evicted_mean.fork() if self.evicted_mean is not None else None,
        )
