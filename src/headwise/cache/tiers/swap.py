"""Virtual memory for pages: all of them far, in a backing, and those used last near, in frames."""

from __future__ import annotations

import copy

import torch

from headwise.cache.pages import PAGE, Layout
from headwise.cache.tiers import Tier
from headwise.cache.tiers.backing import Planes


class Swap:
    """Pages by number. Frames are given to the pages used last; a page that was written goes far when it must leave."""

    def __init__(self, layout: Layout, tier: Tier, device: torch.device) -> None:
        page_bytes = sum(PAGE * width * dtype.itemsize for width, dtype in layout.values())
        self.count = tier.frames(page_bytes)
        self.planes: Planes = {  # zeros and not fresh memory: frames that no page uses are decoded, though never read
            name: torch.zeros(self.count, PAGE, width, dtype=dtype, device=device)
            for name, (width, dtype) in layout.items()
        }
        self.backing = tier.backing(self.planes, device)
        self._frame = torch.zeros(0, dtype=torch.int64)  # by page, -1 while it is far
        self._far = torch.zeros(0, dtype=torch.bool)  # by page, whether the backing has something of it
        self._page = torch.full((self.count,), -1)  # by frame, -1 for none
        self._used = torch.full((self.count,), -1)  # by frame, when
        self._changed = torch.zeros(self.count, dtype=torch.bool)  # by frame, whether the backing is behind
        self._free: list[int] = []
        self._fetched = torch.zeros(0, dtype=torch.int64)  # pages that the last uses had to bring
        self._now = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the frames that were ever used, and of the tables."""
        tables = (self._frame, self._far, self._page, self._used, self._changed)
        near = int((self._used >= 0).sum()) * self.backing.page_bytes
        return near + sum(one.untyped_storage().nbytes() for one in tables)

    def allot(self, count: int) -> torch.Tensor:
        """Numbers [count] of new pages."""
        reused = self._free[:count]
        more = count - len(reused)
        new = torch.arange(len(self._frame), len(self._frame) + more)
        frame = torch.cat((self._frame, torch.full((more,), -1)))
        far = torch.cat((self._far, torch.zeros(more, dtype=torch.bool)))
        self._free, self._frame, self._far = self._free[count:], frame, far  # at once: see _bring
        return torch.cat((torch.tensor(reused, dtype=torch.int64), new))

    def release(self, pages: torch.Tensor) -> None:
        """Forget pages [m]."""
        frames = self._frame[pages]
        frames = frames[frames >= 0]
        self._frame[pages], self._far[pages] = -1, False  # first: see _bring
        self._page[frames], self._used[frames], self._changed[frames] = -1, 0, False
        self._free = sorted([*self._free, *pages.tolist()])

    def retain(self, pages: torch.Tensor) -> None:
        """Forget all pages but these [m]."""
        gone = torch.ones(len(self._frame), dtype=torch.bool)
        gone[pages] = False
        gone[torch.tensor(self._free, dtype=torch.int64)] = False
        self.release(gone.nonzero()[:, 0])

    def near(self, pages: torch.Tensor, changing: bool = False) -> torch.Tensor:
        """Frames [m] of pages [m], brought where they were far: valid until the next call. At most `count` pages.

        changing: whether the caller will write into them.
        """
        assert len(pages) <= self.count, f"{len(pages)} pages cannot be near in {self.count} frames"
        self._now += 1
        frames = self._frame[pages]
        self._used[frames[frames >= 0]] = self._now
        missing = pages[frames < 0]
        if len(missing):
            self._bring(missing)
            frames = self._frame[pages]
        if changing:
            self._changed[frames] = True
        return frames

    def _bring(self, missing: torch.Tensor) -> None:
        """Give frames to pages, those of the pages that were used longest ago."""
        frames = self._used.topk(len(missing), largest=False).indices.sort().values
        leaving = frames[self._page[frames] >= 0]
        leaving = leaving[self._frame[self._page[leaving]] == leaving]
        late = leaving[self._changed[leaving]]
        if len(late):
            self.backing.write(self.planes, late, self._page[late])
            self._far[self._page[late]] = True
            self._changed[late] = False
        # an interrupt leaves the tables true at every line: a frame is a page's where the page says so
        self._frame[self._page[leaving]] = -1
        self._page[frames] = missing
        known = self._far[missing]
        if known.any():
            self.backing.read(self.planes, frames[known], missing[known])
        self._changed[frames] = False
        self._frame[missing], self._used[frames] = frames, self._now
        self._fetched = torch.cat((self._fetched, missing[known]))

    def copied(self, pages: torch.Tensor, prefix: str | tuple[str, ...] = "") -> Planes:
        """A copy [m, PAGE, width] of the planes of pages [m] whose names begin so. Frames stay with whom they have."""
        wanted = {name: plane for name, plane in self.planes.items() if name.startswith(prefix)}
        frames = self._frame[pages]
        here, far = (frames >= 0).nonzero()[:, 0], (frames < 0).nonzero()[:, 0]
        out = {name: plane.new_zeros(len(pages), *plane.shape[1:]) for name, plane in wanted.items()}
        for name, plane in wanted.items():
            out[name][here.to(plane.device)] = plane[frames[here].to(plane.device)]
        if len(far):
            self.backing.read(out, far, pages[far])
        return out

    def prefetch(self) -> None:
        """Tell the backing that what the last uses had to bring will be wanted again; begin a new list of it."""
        far = self._fetched[self._frame[self._fetched] < 0]
        if len(far):
            self.backing.prefetch(far)
        self._fetched = self._fetched[:0]

    def clone(self) -> Swap:
        """An independent copy."""
        other = copy.copy(self)
        other.planes = {name: plane.clone() for name, plane in self.planes.items()}
        other.backing = self.backing.clone()
        for name in ("_frame", "_far", "_page", "_used", "_changed"):
            setattr(other, name, getattr(self, name).clone())
        return other
