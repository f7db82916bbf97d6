"""What a method may look at: one batch row, one layer, KV heads with equal numbers of stored tokens. Never padding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from headwise.attention.byproducts import group_mass
from headwise.errors import HeadwiseError, ShapeError
from headwise.forms import Scoring
from headwise.kernels.reference.scores import probabilities, scores, wide
from headwise.shapes import Mark, Rope

GRANTABLE = (
    "keys", "values", "queries", "query_positions", "mass", "notes", "levels", "summaries", "rope", "memory",
    "calibration", "marks",
)  # fmt: skip

FEW = 8  # queries looked at together


@dataclass(frozen=True)
class Memory:
    """What a method noted for one batch row in earlier steps, or in earlier layers of this one.

    notes: tensors by (layer, KV head, name). layer, heads: those of the view that the memory is shown in.
    """

    notes: Mapping[tuple[int, int, str], Tensor]
    layer: int
    heads: tuple[int, ...]

    def recall(self, name: str, layer: int | None = None) -> tuple[Tensor, ...] | None:
        """What was noted as `name` for each head of the view, in its own layer or another; None unless all have it."""
        layer = self.layer if layer is None else layer
        found = [self.notes.get((layer, head, name)) for head in self.heads]
        return None if any(one is None for one in found) else tuple(one for one in found if one is not None)


@dataclass(frozen=True, eq=False)
class View:
    """Built on demand for one call of a method.

    Always there: `layer`, `heads` (the KV head numbers along h), `phase`, `seen` (tokens this row has passed, with
    the new ones), `scoring` (scale and soft cap of the scores, sinks of these heads), `seed`, `positions [h, n]` (true
    ones, ascending) and `count`, which is n.
    In `granted` only what the method names in its `needs`; any other of these raises HeadwiseError when read:
    `keys [h, n, d]`, `values [h, n, e]`, `queries [h, g, w, d]` (the last w, rotated as used), `query_positions [w]`,
    `mass [h, n]` (column mass so far), `notes [h, n, m]` (what an eviction wrote down about each token),
    `levels [h, n]` (at which level of precision each token lies, 0 the finest), `summaries [h, blocks, ...]` (what a
    selection made of each whole block of keys), `rope` (None where the layer has none), `memory` (Memory),
    `calibration` (the plan's tensors for this method, by name, each beginning with h; empty without any), `marks` (the
    row's named token ranges, in order).
    """

    layer: int
    heads: tuple[int, ...]
    phase: Literal["prefill", "decode"]
    seen: int
    scoring: Scoring
    seed: int
    positions: Tensor
    granted: Mapping[str, Any] = field(default_factory=dict)
    count: int = field(init=False)

    def __post_init__(self) -> None:
        if self.positions.dim() != 2 or self.positions.shape[0] != len(self.heads):
            raise ShapeError(f"positions must be [h={len(self.heads)}, n], got {list(self.positions.shape)}")
        object.__setattr__(self, "count", self.positions.shape[1])
        for name, value in self.granted.items():
            if name not in GRANTABLE:
                raise HeadwiseError(f"'{name}' is nothing a view can grant; it can: {', '.join(GRANTABLE)}")
            if name in ("keys", "values", "mass", "notes", "levels") and value.shape[:2] != self.positions.shape:
                raise ShapeError(
                    f"{name} must begin with [h, n] = {list(self.positions.shape)}, got {list(value.shape)}"
                )

    @property
    def scale(self) -> float:
        """What products of queries and keys are multiplied by."""
        return self.scoring.scale

    def _asked(self, name: str) -> Any:
        if name not in self.granted:
            raise HeadwiseError(
                f"layer {self.layer}: view.{name} was not asked for; add '{name}' to the method's `needs` "
                f"(it has: {', '.join(self.granted) or 'nothing'})"
            )
        return self.granted[name]

    @property
    def keys(self) -> Tensor:
        """Stored keys `[h, n, d]`, rotated as stored."""
        return self._asked("keys")

    @property
    def values(self) -> Tensor:
        """Stored values `[h, n, e]`."""
        return self._asked("values")

    @property
    def queries(self) -> Tensor:
        """The last w queries `[h, g, w, d]`, rotated as used."""
        return self._asked("queries")

    @property
    def query_positions(self) -> Tensor:
        """True positions `[w]` of the queries."""
        return self._asked("query_positions")

    @property
    def mass(self) -> Tensor:
        """Column mass accumulated so far, `[h, n]` float32."""
        return self._asked("mass")

    @property
    def notes(self) -> Tensor:
        """What the eviction method wrote down about each token, `[h, n, m]` float32; 0 for a new token."""
        return self._asked("notes")

    @property
    def levels(self) -> Tensor:
        """The level of precision `[h, n]` int64 at which each token lies now, 0 the finest."""
        return self._asked("levels")

    @property
    def summaries(self) -> Tensor:
        """What the selection made of each whole block of its `summary_size` stored keys, `[h, blocks, ...]`."""
        return self._asked("summaries")

    @property
    def rope(self) -> Rope | None:
        """The layer's rotary embedding; None where it has none."""
        return self._asked("rope")

    @property
    def memory(self) -> Memory:
        """What the method noted before."""
        return self._asked("memory")

    @property
    def calibration(self) -> Mapping[str, Tensor]:
        """Tensors `[h, ...]` that the plan holds for this method, by name; empty without a calibration."""
        return self._asked("calibration")

    @property
    def marks(self) -> tuple[Mark, ...]:
        """The named token ranges of this row, by position; those still to come, too."""
        return self._asked("marks")

    def observe(self, window: int) -> Tensor:
        """Softmax probabilities of the last `window` queries over the stored keys, `[h, g, window, n]`, float32.

        Causal by true positions; a query that sees no stored key has a row of zeros, and a row is short of 1 by what a
        sink gets. Needs keys, queries and query_positions.
        """
        there = self.queries.shape[2]
        if not 1 <= window <= there:
            raise HeadwiseError(f"observe({window}): the view has the last {there} queries; ask for 1 to {there}")
        q = wide(self.queries[:, :, there - window :])
        visible = self.positions[:, None] <= self.query_positions[there - window :][:, None]
        return probabilities(scores(q, wide(self.keys), self.scoring), visible, self.scoring.sinks)[0]

    def group_means(self, window: int) -> Iterator[tuple[Tensor, Tensor]]:
        """`observe(window)` averaged over the group, a few queries at a time, in order: their positions `[t]`, and what
        they gave the first m entries, `[h, t, m]`; they saw none of the others. Needs what `observe` does.
        """
        at = self.query_positions[-window:]
        latest = self.positions[:, -window:]
        if latest.shape[1] < window or not bool((latest == at).all()):  # the queries' own tokens are not all there
            yield at, self.observe(window).mean(1)
            return
        for first in range(0, window, FEW):
            rows = slice(first, min(first + FEW, window))
            keys = self.keys[:, : self.count - window + rows.stop]
            queries = self.queries[:, :, self.queries.shape[2] - window :][:, :, rows]
            yield at[rows], group_mass(queries, keys, self.scoring).div_(queries.shape[1])

    def cuts(self, first: int, last: int) -> list[tuple[int, int]]:
        """Of each head, how many entries lie at positions below `first`, and the entry from which on they are at `last`
        or later; where these meet, both are the first number."""
        first, last = max(0, first), max(first, last)  # positions ascend from 0: so few entries can be meant
        low = (self.positions[:, :first] < first).sum(1)
        tail = self.positions[:, max(0, self.count - max(0, self.seen - last)) :]
        high = self.count - (tail >= last).sum(1)
        return list(zip(low.tolist(), high.tolist(), strict=True))

    def entries(self, positions: Sequence[Tensor]) -> list[Tensor]:
        """Storage entries of the tokens at `positions [m]`, ascending, of each head; a token that has left has none."""
        if bool((self.positions[:, -1:] == self.count - 1).all()):  # none has left: the usual case, and the quick one
            return [one.long() for one in positions]
        found = []
        for own, wanted in zip(self.positions, positions, strict=True):
            entries = torch.searchsorted(own, wanted.to(own.dtype)).clamp(max=self.count - 1)
            found.append(entries[own[entries] == wanted])
        return found

    def subset(self, index: Sequence[int]) -> View:
        """The same view of the heads at `index` along h, in that order."""
        take = torch.tensor(list(index), dtype=torch.int64, device=self.positions.device)
        granted = dict(self.granted)
        for name in {"keys", "values", "queries", "mass", "notes", "levels", "summaries"} & granted.keys():
            granted[name] = granted[name][take]
        heads = tuple(self.heads[i] for i in index)
        if "memory" in granted:
            granted["memory"] = replace(self.memory, heads=heads)
        if "calibration" in granted:
            granted["calibration"] = {name: one[take] for name, one in self.calibration.items()}
        scoring = self.scoring.of(index)
        return replace(self, heads=heads, scoring=scoring, positions=self.positions[take], granted=granted)
