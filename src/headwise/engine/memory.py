"""What methods note between steps and layers: owned by a session, forked, cut back and saved with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from headwise.attention.view import Memory, View
from headwise.cache.journal import Rollback

REACH = 16  # tokens that a truncate may take back before older notes are needed; a draft to verify is no longer

_Place = tuple[int, int, str]  # layer, KV head, name
_Kept = dict[_Place, list[tuple[int, torch.Tensor]]]


class _Newest(Mapping[_Place, torch.Tensor]):
    """The newest of what was noted of a batch row until it had seen `seen` tokens, looked up when it is asked for."""

    def __init__(self, kept: _Kept, seen: int) -> None:
        self._kept, self._seen = kept, seen

    def __getitem__(self, place: _Place) -> torch.Tensor:
        for when, tensor in reversed(self._kept[place]):
            if when <= self._seen:
                return tensor
        raise KeyError(place)

    def __iter__(self) -> Iterator[_Place]:
        return (place for place, kept in self._kept.items() if any(when <= self._seen for when, _ in kept))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Memories:
    """Tensors by batch row, layer, KV head and name, each with the tokens that its row had seen when it was written.

    Of each only the newest is shown; older ones stay while `truncate` could make them the newest again. Going back
    further than REACH tokens forgets the note, and the method starts anew. Tensors and lists of them are never changed,
    only replaced.
    """

    def __init__(self) -> None:
        self._rows: dict[int, _Kept] = {}

    def shown(self, row: int, seen: int, layer: int, heads: tuple[int, ...]) -> Memory:
        """The newest notes of a batch row when it has seen `seen` tokens, for a view of some heads of a layer. Later
        ones there are where drafted tokens were read in an earlier layer."""
        return Memory(_Newest(self._rows.setdefault(row, {}), seen), layer, heads)

    def write(self, row: int, view: View, noted: Mapping[str, Sequence[torch.Tensor]]) -> None:
        """Keep what a method noted for the heads of a view, one tensor per head."""
        notes = self._rows.setdefault(row, {})
        for name, tensors in noted.items():
            for head, tensor in zip(view.heads, tensors, strict=True):
                newest = (view.seen, tensor.clone(memory_format=torch.contiguous_format))
                kept = [*notes.get((view.layer, head, name), ()), newest]
                while len(kept) > 1 and kept[1][0] <= view.seen - REACH:
                    kept.pop(0)
                notes[view.layer, head, name] = kept

    def truncate(self, limits: Sequence[int]) -> None:
        """Forget what was noted after row i had seen limits[i] tokens."""
        for row, notes in self._rows.items():
            for place, kept in list(notes.items()):
                notes[place] = [one for one in kept if one[0] <= limits[row]]
                if not notes[place]:
                    del notes[place]

    def select(self, rows: Sequence[int]) -> None:
        """Go on with copies of the notes of these batch rows."""
        notes = [self._rows.get(row, {}) for row in rows]
        self._rows = {new: {place: list(kept) for place, kept in one.items()} for new, one in enumerate(notes)}

    def fork(self) -> Memories:
        """An independent copy."""
        other = Memories()
        other._rows = {row: dict(notes) for row, notes in self._rows.items()}
        return other

    def checkpoint(self) -> Rollback:
        """What to call to have again the notes there are now."""
        rows = {row: dict(notes) for row, notes in self._rows.items()}

        def back() -> None:
            self._rows = rows

        return back

    @property
    def nbytes(self) -> int:
        """Bytes of the real storages."""
        kept = (one for notes in self._rows.values() for kept in notes.values() for one in kept)
        return sum(tensor.untyped_storage().nbytes() for _, tensor in kept)

    def state(self) -> dict[str, torch.Tensor]:
        """Every note by a name that tells its place, what `restore` reads."""
        return {
            f"{row}.{layer}.{head}.{seen}.{place}.{name}": tensor
            for row, notes in self._rows.items()
            for (layer, head, name), kept in notes.items()
            for place, (seen, tensor) in enumerate(kept)
        }

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over what `state()` gave."""
        self._rows = {}
        for place, tensor in sorted(state.items(), key=lambda one: [int(x) for x in one[0].split(".")[:5]]):
            row, layer, head, seen, _, name = place.split(".", 5)
            notes = self._rows.setdefault(int(row), {})
            notes.setdefault((int(layer), int(head), name), []).append((int(seen), tensor))
