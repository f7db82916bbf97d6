"""A store whose keys share their scales by channel over groups of neighbouring tokens; any token may yet leave."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from headwise.cache.codecs import codec
from headwise.cache.codecs.channels import Channels
from headwise.cache.journal import Checkpoint
from headwise.cache.kv_store import check_entries
from headwise.cache.paged import PagedStore
from headwise.cache.shape import Shape
from headwise.cache.state import State, split
from headwise.errors import SessionError


class GroupedStore(PagedStore):
    """Keys by a `Channels` codec. Lane i has groups of `sizes[i]` neighbouring tokens with `numbers[i] [groups, 2, d]`.

    A token may leave at any time: its group goes on with fewer. Neighbours that together fit one group are joined and
    rounded anew, so that the numbers stay in proportion to the tokens: at most twice what whole groups would take.
    A token's group is joined again only once about half of its neighbourhood has left, so rounding does not pile up.
    """

    def __init__(self, shape: Shape, device: torch.device | str = "cpu") -> None:
        super().__init__(shape, device)
        self.codec: Channels = codec(shape.codecs[0])
        self.sizes: list[list[int]] = [[] for _ in range(shape.lanes)]
        self.numbers = [self._no_numbers() for _ in range(shape.lanes)]

    def _no_numbers(self) -> torch.Tensor:
        return torch.zeros(0, 2, self.shape.key_width, dtype=torch.float16, device=self.pages.device)

    @property
    def nbytes(self) -> int:
        """Bytes of the real storages."""
        return super().nbytes + sum(one.untyped_storage().nbytes() for one in self.numbers)

    def _encode(
        self, part: int, x: torch.Tensor, positions: torch.Tensor, counts: list[int]
    ) -> dict[str, torch.Tensor]:
        """As in PagedStore; every lane's new keys begin a new group."""
        if part == 1:
            return super()._encode(part, x, positions, counts)
        data = torch.zeros(*x.shape[:2], self.shape.layout["key.data"][0], dtype=torch.uint8, device=x.device)
        for lane, count in enumerate(counts):
            new = x[lane, x.shape[1] - count :]
            groups = new.split(self.codec.tokens) if count else ()
            numbers = torch.stack([self.codec.measure(one) for one in groups]) if groups else self._no_numbers()
            sizes = [len(one) for one in groups]
            data[lane, x.shape[1] - count :] = self.codec.encode(new, spread(numbers, sizes))
            self.sizes[lane] = self.sizes[lane] + sizes
            self.numbers[lane] = torch.cat((self.numbers[lane], numbers))
        return {"data": data}

    def _decode(
        self, part: int, planes: dict[str, torch.Tensor], first: int, last: int, start: int = 0
    ) -> torch.Tensor:
        if part == 1:
            return super()._decode(part, planes, first, last, start)
        data = planes["key.data"]
        here = slice(start, start + data.shape[1])
        numbers = [spread(self.numbers[lane], self.sizes[lane])[here] for lane in range(first, last)]
        return self.codec.decode(data, torch.stack(numbers), self.shape.dtype)

    def keep(self, entries: Sequence[torch.Tensor]) -> None:
        """As in PagedStore; groups that become small are joined."""
        check_entries(self, entries)  # before any group is changed
        joined = [self._regroup(lane, chosen) for lane, chosen in enumerate(entries)]
        super().keep(entries)
        for lane, (places, keys, numbers) in enumerate(joined):
            self.pages.write(lane, places, {"key.data": self.codec.encode(keys, numbers)})

    def _regroup(self, lane: int, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Groups of `lane` once it keeps only the `chosen` entries. Returns of the tokens whose group is a joined one
        the places [m] among the kept, keys [m, d] and new numbers [m, 2, d]."""
        of = torch.arange(len(self.sizes[lane])).repeat_interleave(torch.tensor(self.sizes[lane], dtype=torch.int64))
        held = torch.bincount(of[chosen.cpu()], minlength=len(self.sizes[lane])).tolist()
        kept = chosen.to(self.pages.device)
        keys = self.segment(lane, lane + 1).keys[0, kept] if self.lengths[lane] else self._no_numbers()[:, 0]
        old, numbers, places = self.numbers[lane], [], []
        sizes: list[int] = []
        for members in neighbours(held, self.codec.tokens):
            start, size = sum(sizes), sum(held[member] for member in members)
            sizes.append(size)
            if len(members) == 1:
                numbers.append(old[members[0]])
            else:
                numbers.append(self.codec.measure(keys[start : start + size]))
                places.append(torch.arange(start, start + size))
        self.sizes[lane] = sizes
        self.numbers[lane] = torch.stack(numbers) if numbers else self._no_numbers()
        place = torch.cat(places).to(keys.device) if places else torch.zeros(0, dtype=torch.int64, device=keys.device)
        return place, keys[place], spread(self.numbers[lane], sizes)[place]

    def truncate(self, seen: Sequence[int]) -> None:
        """As in PagedStore."""
        super().truncate(seen)
        for lane, length in enumerate(self.lengths):
            left, sizes = length, []
            for size in self.sizes[lane]:
                if left > 0:
                    sizes.append(min(size, left))
                    left -= size
            self.sizes[lane] = sizes
            self.numbers[lane] = self.numbers[lane][: len(sizes)].clone()

    def checkpoint(self) -> Checkpoint:
        """As in PagedStore, with the groups."""
        sizes, numbers = list(self.sizes), list(self.numbers)

        def back() -> None:
            self.sizes, self.numbers = sizes, numbers

        return super().checkpoint() + Checkpoint((), (back,))

    def fork(self) -> GroupedStore:
        """An independent copy."""
        other = super().fork()
        other.sizes, other.numbers = [list(sizes) for sizes in self.sizes], list(self.numbers)
        return other

    def select(self, lanes: Sequence[int]) -> None:
        """As in PagedStore."""
        super().select(lanes)
        self.sizes, self.numbers = [list(self.sizes[lane]) for lane in lanes], [self.numbers[lane] for lane in lanes]

    def state(self) -> dict[str, torch.Tensor]:
        """As in PagedStore, with the groups."""
        sizes = torch.tensor([size for lane in self.sizes for size in lane], dtype=torch.int64)
        groups = torch.tensor([len(lane) for lane in self.sizes])
        return super().state() | {"sizes": sizes, "groups": groups, "numbers": torch.cat(self.numbers)}

    def expect(self, state: State, seen: Sequence[int]) -> None:
        """As in PagedStore, with the groups."""
        super().expect(state, seen)
        groups = state.counts("groups", self.shape.lanes)
        sizes = state.counts("sizes", sum(groups), least=1)
        state.take("numbers", torch.float16, [sum(groups), 2, self.shape.key_width])
        held = [sum(lane) for lane in split(sizes, groups)]
        if held != state.counts("lengths", self.shape.lanes) or max(sizes, default=0) > self.codec.tokens:
            raise SessionError(f"groups of {sizes[:8]} ... tokens in lanes of {held[:8]} ... disagree with its lengths")

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Take over what `state()` gave."""
        super().restore(state)
        groups = state["groups"].tolist()
        self.sizes = [lane.tolist() for lane in state["sizes"].split(groups)]
        self.numbers = [lane.to(self.pages.device).clone() for lane in state["numbers"].split(groups)]


def spread(numbers: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Each token's numbers [n, 2, d], from its group's [groups, 2, d]."""
    return numbers.repeat_interleave(torch.tensor(sizes, dtype=torch.int64, device=numbers.device), dim=0)


def neighbours(held: Sequence[int], most: int) -> list[list[int]]:
    """Groups to join, as lists of indices: runs of neighbours that together hold at most `most`. Empty ones are left
    out; two that stay apart hold more than `most` together."""
    runs: list[list[int]] = []
    total = 0
    for index, size in enumerate(held):
        if not size:
            continue
        if runs and total + size <= most:
            runs[-1].append(index)
            total += size
        else:
            runs.append([index])
            total = size
    return runs
