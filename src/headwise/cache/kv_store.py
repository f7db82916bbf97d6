"""What every store of keys and values answers, however it holds them: the one shape that the engine knows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from headwise.cache.journal import Checkpoint
from headwise.cache.pages import PAGE
from headwise.cache.shape import Shape
from headwise.cache.state import State
from headwise.cache.summaries import Summaries
from headwise.errors import SessionError
from headwise.forms import Paged, Side, Where

if TYPE_CHECKING:
    from headwise.cache.paged import PagedStore

Own = TypeVar("Own", bound="KVStore")


@dataclass(frozen=True)
class Segment:
    """Lanes [first, last) that hold equally many tokens, readable as one tensor each."""

    first: int
    last: int
    keys: torch.Tensor  # [h, n, d]
    values: torch.Tensor  # [h, n, e]
    positions: torch.Tensor  # [h, n]


class KVStore(ABC):
    """Keys, values and true positions of the lanes of one group of heads; a lane is one KV head of one batch row.

    Entries of a lane are its tokens in the order of positions; in a part of a `LevelledStore`, in the order in which
    they came. A run [first, last) is of lanes that `runs` names together, or of some of these. summaries: what a
    selection made of blocks of the keys. ragged: whether lanes of different lengths can be read in one piece.
    unfitted: whether a lane's first tokens, to which something is fitted, are still to come, and `meet` before them.
    Abstract is what each kind of store does in its own way; then come answers that most kinds share.
    """

    shape: Shape
    device: torch.device
    summaries: Summaries
    ragged: bool = True
    unfitted: bool = False

    # what is held

    @property
    @abstractmethod
    def lengths(self) -> list[int]:
        """Tokens stored, by lane."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the real storages."""

    @abstractmethod
    def runs(self) -> list[tuple[int, int]]:
        """Neighbouring lanes [first, last) that hold equally many tokens and can be read as one tensor."""

    @abstractmethod
    def segment(self, first: int, last: int, stop: int | None = None) -> Segment:
        """A run of lanes, decoded; only their entries before `stop` when given."""

    @abstractmethod
    def keys(self, first: int, last: int, start: int = 0) -> torch.Tensor:
        """Keys [h, n, d] of a run of lanes, decoded, from entry `start` on; values are not touched."""

    @abstractmethod
    def values(self, first: int, last: int, start: int = 0) -> torch.Tensor:
        """Values [h, n, e] of a run of lanes, decoded, from entry `start` on; keys are not touched."""

    @abstractmethod
    def positions_of(self, first: int, last: int) -> torch.Tensor:
        """True positions [h, n] of a run of lanes."""

    @abstractmethod
    def extras(self, name: str, first: int, last: int) -> torch.Tensor:
        """A plane [h, n, width] of `shape.extras` of a run of lanes: what is remembered of each token."""

    # how it changes

    @abstractmethod
    def append(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        positions: torch.Tensor,
        counts: list[int] | None = None,
        extras: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Add keys [lanes, t, d], values [lanes, t, e] at positions [lanes, t]; of lane i only the last counts[i].

        extras: planes [lanes, t, width] of `shape.extras` that the tokens bring along, 0 by default.
        """

    def meet(self, energy: torch.Tensor, centred: bool) -> None:  # noqa: B027  # most kinds have nothing to do
        """Told before tokens are appended to a store that is `unfitted`: the energy [lanes, d] of the queries that meet
        their keys, by channel; centred: whether the scores of a query may all move alike, as no cap bends them."""

    @abstractmethod
    def write_extras(self, name: str, lane: int, numbers: torch.Tensor) -> None:
        """Replace a plane of `shape.extras` of all tokens of a lane by `numbers [n, width]`."""

    @abstractmethod
    def revalue(self, lane: int, entries: torch.Tensor, values: torch.Tensor) -> None:
        """Replace the values [m, e] of a lane's `entries [m]`."""

    @abstractmethod
    def keep(self, entries: Sequence[torch.Tensor]) -> None:
        """Keep of each lane only `entries[lane] [m]` (ascending indices); the memory of the rest returns, but for room
        such as a growing pool has. SessionError for entries that there are not."""

    @abstractmethod
    def truncate(self, seen: Sequence[int]) -> None:
        """Forget every token of lane i at position >= seen[i]. No checkpoint takes this back."""

    @abstractmethod
    def select(self, lanes: Sequence[int]) -> None:
        """Become a store of copies of these lanes, in whole batch rows; a lane may come several times. No checkpoint
        takes this back."""

    @abstractmethod
    def permute_pages(self, generator: torch.Generator) -> None:
        """Shuffle the physical pages; nothing that is read may change (used by tests)."""

    # how it is left and taken up

    @abstractmethod
    def fork(self: Own) -> Own:
        """An independent copy."""

    @abstractmethod
    def checkpoint(self) -> Checkpoint:
        """A state to go back to while it is held: what later changes destroy is kept for it, nothing is copied now.
        Only the newest works."""

    @abstractmethod
    def state(self) -> dict[str, torch.Tensor]:
        """Live entries only, as tensors by name: what `restore` reads."""

    @abstractmethod
    def expect(self, state: State, seen: Sequence[int]) -> None:
        """Refuse a state that `restore` could not take over, of lanes that have seen[i] tokens: see `State`."""

    @abstractmethod
    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Take over what `state()` gave, once it is as expected."""

    # answers that most kinds share

    @property
    def parts(self) -> Sequence[KVStore]:
        """The stores that tokens lie in by level of precision, the finest first: this one alone."""
        return (self,)

    @property
    def moved(self) -> int:
        """Bytes carried so far between memory and where else tokens lie: none, as all of them are in memory."""
        return 0

    def pools(self) -> Sequence[PagedStore]:
        """The stores of one pool of pages in memory in which all it holds lies, by level of precision, the finest
        first, so that a kernel that has found them can read them step after step; none where it lies elsewhere."""
        return ()

    def predicted(self, counts: Sequence[tuple[int, ...]]) -> int:
        """Bytes for lanes of `counts` tokens wanted at each level, whole pages."""
        return self.shape.nbytes([count for (count,) in counts])

    def accepted(self, count: int, held: int = 0) -> int:
        """How many of `count` tokens a lane that holds `held` here takes over from a finer level."""
        return self.shape.accepted(count, held)

    def positions(self, lane: int) -> torch.Tensor:
        """True positions [n] of a lane's tokens."""
        return self.positions_of(lane, lane + 1)[0]

    def levels(self, first: int, last: int) -> torch.Tensor:
        """The level [h, n] at which each token of a run of lanes lies: 0, as there is one."""
        return torch.zeros(last - first, self.lengths[first], dtype=torch.int64, device=self.device)

    def demote(self, wanted: Sequence[torch.Tensor | None]) -> None:
        """Move the tokens of lane i that lie at a finer level than `wanted[i] [n]` (0 the finest; None: leave all).
        SessionError for levels that there are not: here is one."""
        if any(levels is not None and bool(levels.any()) for levels in wanted):
            raise SessionError("a store of one level of precision has no coarser one for its tokens to move to")

    def prefetch(self) -> None:  # noqa: B027  # most kinds have nothing to do
        """Called while the layer before this one is read: the moment to make ready what this one will read."""

    def pieces(
        self, first: int, last: int, where: Where, tokens: int, stop: int | None = None
    ) -> Iterator[tuple[slice, Paged, Where]]:
        """What `tokens` new queries of a run of lanes read, in pieces that add: (lanes counted from first, pages, which
        of them), each valid until the next is asked for. Only entries before `stop` when given. Here a single one."""
        yield slice(0, last - first), self.paged(first, last, stop), where

    def paged(self, first: int, last: int, stop: int | None = None) -> Paged:
        """The lanes [first, last) for attention to read: valid until the store changes. Only their entries before
        `stop` when given. To be read decoded, where there are no planes of single heads."""
        keys, values = (
            Side(" + ".join(part.shape.codecs[side] for part in self.parts), width, {})
            for side, width in ((0, self.shape.key_width), (-1, self.shape.value_width))
        )
        lengths = tuple(n if stop is None else min(n, stop) for n in self.lengths[first:last])
        return Paged(keys, values, lengths, (0,) * len(lengths), None, PAGE, lambda: self._dense(first, last, stop))

    def _dense(self, first: int, last: int, stop: int | None) -> list[tuple[slice, torch.Tensor, torch.Tensor]]:
        """What `Paged.dense` gives of the lanes [first, last)."""
        cut = ((max(a, first), min(b, last)) for a, b in self.runs() if a < last and b > first)
        segments = [self.segment(a, b, stop) for a, b in cut]
        return [(slice(one.first - first, one.last - first), one.keys, one.values) for one in segments]


def check_entries(store: KVStore, entries: Sequence[torch.Tensor]) -> None:
    """Raise SessionError unless each lane holds what `entries[lane] [m]` names."""
    for lane, (chosen, length) in enumerate(zip(entries, store.lengths, strict=True)):
        if chosen.numel() and not 0 <= int(chosen[0]) <= int(chosen[-1]) < length:
            raise SessionError(f"lane {lane} holds {length} tokens; cannot keep up to entry {int(chosen[-1])}")
