"""A store whose keys and values lie far, but for the pages used last: read in pieces that fit what may be near."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch

from headwise.cache.journal import Checkpoint, Journal, Rows
from headwise.cache.paged import PagedStore
from headwise.cache.pages import PAGE, Layout, Pages, pages_for
from headwise.cache.shape import SIDES, Shape
from headwise.cache.tiers import Tier
from headwise.cache.tiers.swap import Swap
from headwise.errors import SessionError
from headwise.forms import Causal, Full, Paged, Side, Tokens, Weighted, Where


class TieredJournal(Journal):
    """As `Journal`; keys and values need no notes but of single entries overwritten: after the checkpoint others lie in
    new pages, and the numbers of the old ones are all that is kept."""

    pages: TieredPages

    def __init__(self, pages: TieredPages) -> None:
        super().__init__(pages)
        self.owned, self.moved = list(pages.owned), pages.moved
        self.overwritten: list[tuple[torch.Tensor, torch.Tensor, Rows]] = []  # pages, places in them, what was there

    def back(self) -> None:
        """As in Journal."""
        super().back()
        self.pages.owned = self.owned
        for pages, places, rows in reversed(self.overwritten):
            self.pages.overwrite(pages, places, rows)
        self.pages.swap.retain(torch.cat(self.owned))
        self.pages.swap.backing.moved = self.moved


class TieredPages(Pages):
    """Pages whose keys and values are in a `Swap`; positions, masses and notes are small, asked for at every step, and
    stay. `owned[lane] [pages]` are their numbers there, tensors that are never changed but replaced."""

    def __init__(self, lanes: int, layout: Layout, device: torch.device, tier: Tier) -> None:
        self.swap = Swap({name: one for name, one in layout.items() if name.startswith(SIDES)}, tier, device)
        self.owned = [torch.zeros(0, dtype=torch.int64) for _ in range(lanes)]
        self._abandoned = False  # whether the swap holds pages that nobody owns but a journal
        super().__init__(lanes, {name: one for name, one in layout.items() if not name.startswith(SIDES)}, device)

    @property
    def nbytes(self) -> int:
        """Bytes in memory: frames, tables, and what does not go far."""
        return super().nbytes + self.swap.nbytes + sum(one.untyped_storage().nbytes() for one in self.owned)

    @property
    def moved(self) -> int:
        """Bytes read from the backing and written to it so far."""
        return self.swap.backing.moved

    def checkpoint(self) -> TieredJournal:
        """As in Pages; pages that the last one kept are given back."""
        if self._abandoned:
            self.swap.retain(torch.cat(self.owned))
            self._abandoned = False
        return TieredJournal(self)

    def read(
        self, first: int, last: int, prefix: str | tuple[str, ...] = "", start: int = 0
    ) -> dict[str, torch.Tensor]:
        """As in Pages; what is far is copied."""
        planes = super().read(first, last, prefix, start)
        if not any(name.startswith(prefix) for name in self.swap.planes):
            return planes
        skipped, held = start // PAGE, pages_for(self.lengths[first])
        pages = torch.cat([self.owned[lane][skipped:held] for lane in range(first, last)])
        inside = slice(start - skipped * PAGE, self.lengths[first] - skipped * PAGE)
        for name, plane in self.swap.copied(pages, prefix).items():
            planes[name] = plane.view(last - first, (held - skipped) * PAGE, plane.shape[-1])[:, inside]
        return planes

    def append(self, planes: dict[str, torch.Tensor], counts: list[int] | None = None) -> None:
        """As in Pages."""
        before = list(self.lengths)
        super().append({name: planes[name] for name in self.planes}, counts)
        for lane, (start, end) in enumerate(zip(before, self.lengths, strict=True)):
            new = {name: planes[name][lane, planes[name].shape[1] - (end - start) :] for name in self.swap.planes}
            if end > start:
                self._put(lane, start, new)

    def _put(self, lane: int, start: int, planes: dict[str, torch.Tensor]) -> None:
        """Write planes [m, width] to the entries of a lane from `start` on."""
        stop = start + len(next(iter(planes.values())))
        missing = pages_for(stop) - len(self.owned[lane])
        if missing > 0:
            self.owned[lane] = torch.cat((self.owned[lane], self.swap.allot(missing)))
        for first in range(start // PAGE, pages_for(stop), self.swap.count):
            last = min(first + self.swap.count, pages_for(stop))
            entries = torch.arange(max(start, first * PAGE), min(stop, last * PAGE))
            frames = self.swap.near(self.owned[lane][first:last], changing=True)
            slots = (frames[entries // PAGE - first] * PAGE + entries % PAGE).to(self.device)
            for name, plane in self.swap.planes.items():
                plane.flatten(0, 1)[slots] = planes[name][entries[0] - start : entries[-1] + 1 - start]

    def write(self, lane: int, entries: torch.Tensor, planes: dict[str, torch.Tensor]) -> None:
        """As in Pages; what is far is brought near and changed there, a few pages at a time."""
        far = {name: plane for name, plane in planes.items() if name in self.swap.planes}
        super().write(lane, entries, {name: plane for name, plane in planes.items() if name not in far})
        if not far or not len(entries):
            return
        entries = entries.cpu()
        pages, places = self.owned[lane][entries // PAGE], entries % PAGE
        if isinstance(journal := self._noting, TieredJournal):
            before = self._taken(self.owned[lane], entries)
            journal.overwritten.append((pages, places, {name: before[name] for name in far}))
        self.overwrite(pages, places, far)

    def overwrite(self, pages: torch.Tensor, places: torch.Tensor, planes: Rows) -> None:
        """Put planes [m, width] that are far into `places [m]` of pages [m]."""
        for some in pages.unique().split(self.swap.count):
            frames = torch.zeros(int(some[-1]) + 1, dtype=torch.int64)
            frames[some] = self.swap.near(some, changing=True)
            here = torch.isin(pages, some).nonzero()[:, 0]
            slots = (frames[pages[here]] * PAGE + places[here]).to(self.device)
            for name, plane in planes.items():
                self.swap.planes[name].flatten(0, 1)[slots] = plane[here.to(self.device)]

    def keep(self, kept: Sequence[torch.Tensor]) -> None:
        """As in Pages. Keys and values move up within their pages, a piece at a time: each goes where pages were read
        already; or into new pages, where a journal may want the old ones again."""
        noting = self._noting is not None
        for lane, entries in enumerate(kept):
            entries, done = entries.cpu(), 0
            source = self.owned[lane]
            if noting:
                stay = int((entries == torch.arange(len(entries))).cumprod(0).sum()) // PAGE  # whole pages in place
                done, self.owned[lane] = stay * PAGE, source[:stay]
            for piece in entries[done:].split(self.swap.count):
                self._put(lane, done, self._taken(source, piece))
                done += len(piece)
        self._abandoned |= noting
        super().keep(kept)
        self._release()

    def select(self, lanes: Sequence[int]) -> None:
        """Refused: every copy of a lane would have to be read and written again."""
        raise SessionError("lanes that lie in a tier cannot be selected; leave resident= out")

    def rebuild(self, kept: Sequence[torch.Tensor] | None, capacities: list[int] | None = None) -> None:
        """As in Pages, of what is not far."""
        super().rebuild(kept, capacities)
        self._release()

    def _release(self) -> None:
        """Give back the far pages that hold nothing any more, unless a journal may want them again."""
        for lane, length in enumerate(self.lengths):
            if self._noting is None:
                self.swap.release(self.owned[lane][pages_for(length) :])
            self.owned[lane] = self.owned[lane][: pages_for(length)].clone()

    def _taken(self, owned: torch.Tensor, entries: torch.Tensor) -> Rows:
        """Planes [m, width] of entries [m] of a lane whose pages are `owned`."""
        pages, place = (entries // PAGE).unique(return_inverse=True)
        slots = (place * PAGE + entries % PAGE).to(self.device)
        return {name: plane.flatten(0, 1)[slots] for name, plane in self.swap.copied(owned[pages]).items()}

    def clone(self) -> TieredPages:
        """An independent copy, with frames and a backing of its own."""
        other = super().clone()
        other.swap, other.owned = self.swap.clone(), [one.clone() for one in self.owned]
        return other


class TieredStore(PagedStore):
    """A `PagedStore` over `TieredPages`: what is read is brought near first, in pieces where it does not all fit."""

    pages: TieredPages

    def __init__(self, shape: Shape, tier: Tier, device: torch.device | str = "cpu") -> None:
        self.tier = tier
        self._backward = False
        super().__init__(shape, device)

    def _pool(self) -> TieredPages:
        return TieredPages(self.shape.lanes, self.shape.layout, self.device, self.tier)

    @property
    def moved(self) -> int:
        """As in KVStore: read from the backing and written to it."""
        return self.pages.moved

    def pools(self) -> tuple[()]:
        """None: most pages are far."""
        return ()

    def pieces(
        self, first: int, last: int, where: Where, tokens: int, stop: int | None = None
    ) -> Iterator[tuple[slice, Paged, Where]]:
        """As in KVStore. Chosen tokens bring the pages they are in and no others; everything is read lane by lane where
        the lanes do not fit together, to and fro."""
        lengths = [n if stop is None else min(n, stop) for n in self.lengths[first:last]]
        if isinstance(where, Tokens | Weighted):
            listed = where.tokens if isinstance(where, Weighted) else where
            wanted = [one.cpu().div(PAGE, rounding_mode="floor").unique() for one in listed.indices]
        elif isinstance(where, Full | Causal):
            wanted = [torch.arange(pages_for(n)) for n in lengths]
        else:
            raise SessionError(f"{type(where).__name__} cannot be read from a tier; leave resident= out")
        if sum(map(len, wanted)) <= self.pages.swap.count:
            yield slice(0, last - first), self._near(first, lengths, wanted), where
            return
        self._backward = not self._backward  # what was read last is still near
        for lane in reversed(range(len(lengths))) if self._backward else range(len(lengths)):
            yield from self._lane_pieces(first, lane, lengths[lane], wanted[lane], where)

    def _lane_pieces(
        self, first: int, lane: int, length: int, pages: torch.Tensor, where: Where
    ) -> Iterator[tuple[slice, Paged, Where]]:
        """One lane in pieces of as many pages as may be near, the last piece a full one: queries are the last tokens,
        and a causal piece has to hold all of them."""
        most, here = self.pages.swap.count, slice(lane, lane + 1)
        if not len(pages):  # a lane of which nothing is read has its place among the others all the same
            yield here, self._near(first + lane, [length], [pages]), _within(where, lane, pages)
        for end in range(len(pages) % most or most, len(pages) + 1, most):
            part = pages[max(0, end - most) : end]
            if isinstance(where, Tokens | Weighted):
                yield here, self._near(first + lane, [length], [part]), _within(where, lane, part)
            else:
                stop = min(length, int(part[-1] + 1) * PAGE)
                form = where if stop == length else Full()
                yield here, self._near(first + lane, [stop - int(part[0]) * PAGE], [part], int(part[0])), form

    def _near(self, first: int, lengths: list[int], wanted: list[torch.Tensor], skipped: int = 0) -> Paged:
        """Lanes from `first` on as if they held `lengths` tokens after `skipped` pages: their `wanted` pages near, any
        other ones not there."""
        swap = self.pages.swap
        held = [pages_for(n) for n in lengths]
        frames = swap.near(torch.cat([self.pages.owned[first + i][one] for i, one in enumerate(wanted)]))
        starts = [0, *torch.tensor(held).cumsum(0).tolist()]
        table = torch.zeros(starts[-1], dtype=torch.int64)
        table[torch.cat([one - skipped + start for one, start in zip(wanted, starts, strict=False)])] = frames
        table = table.to(self.device)
        sides = [
            Side(name, width, self.side(part, swap.planes))
            for part, (name, width) in enumerate(zip(self.shape.codecs, self.shape.widths, strict=True))
        ]

        def dense() -> list[tuple[slice, torch.Tensor, torch.Tensor]]:
            out, lane = [], 0
            for length, equal in groupby(lengths):
                lanes = slice(lane, lane := lane + len(list(equal)))
                rows = table[starts[lanes.start] : starts[lanes.stop]].view(lanes.stop - lanes.start, -1)
                own = {name: plane[rows].flatten(1, 2)[:, :length] for name, plane in swap.planes.items()}
                out.append((lanes, *self._both(own, first + lanes.start, first + lanes.stop)))
            return out

        skip = self.shape.skip or 0
        return Paged(sides[0], sides[-1], tuple(lengths), tuple(starts[:-1]), table, PAGE, dense, skip)

    def checkpoint(self) -> Checkpoint:
        """As in PagedStore, with the direction of the last reading."""
        backward = self._backward

        def back() -> None:
            self._backward = backward

        return super().checkpoint() + Checkpoint((), (back,))

    def prefetch(self) -> None:
        """Have what the last step had to fetch read ahead, as this step will likely want it again."""
        self.pages.swap.prefetch()

    def permute_pages(self, generator: torch.Generator) -> None:
        """Shuffle the pages of what does not go far, and send all others there (used by tests)."""
        super().permute_pages(generator)
        swap = self.pages.swap
        for pages in swap.allot(swap.count).split(swap.count):
            swap.near(pages)
            swap.release(pages)


def _within(where: Where, lane: int, pages: torch.Tensor) -> Where:
    """Of chosen tokens, those of a lane that lie in these pages, with their bias where they have one; other forms as
    they are."""
    if not isinstance(where, Tokens | Weighted):
        return where
    own = (where.tokens if isinstance(where, Weighted) else where).indices[lane]
    stays = torch.isin(own.cpu().div(PAGE, rounding_mode="floor"), pages).to(own.device)
    chosen = Tokens([own[stays]])
    return Weighted(chosen, (where.bias[lane][..., stays],)) if isinstance(where, Weighted) else chosen
