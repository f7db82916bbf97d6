"""The states that layers pass on beside keys and values: the ends of short convolutions, and running sums of linear
attention, gated delta rules and state-space layers.

A state stands for all tokens so far and has the same size however many these are. It cannot go back a token: it is kept
at the lengths that one asked for (`keep`), and goes back to these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch

from headwise.cache.journal import Rollback
from headwise.cache.state import State
from headwise.errors import SessionError

Sort = Literal["conv", "recurrent"]
Place = tuple[int, Sort, int]  # layer, sort, and which of several that a layer has
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class States:
    """States by their place, [b, ...] each, of `rows` sequences. Tensors held are never changed, only replaced, so that
    to go back, or to copy all of it, takes no more than a dictionary."""

    def __init__(self) -> None:
        self._held: dict[Place, torch.Tensor] = {}
        self._before: dict[Place, torch.Tensor] | None = None  # what was held when the newest forward began,
        self._began = 0  # after so many tokens
        self._kept: dict[int, dict[Place, torch.Tensor]] = {}  # by tokens passed

    def __bool__(self) -> bool:
        return bool(self._held)

    @property
    def layers(self) -> list[int]:
        """The layers that have a state."""
        return sorted({layer for layer, _, _ in self._held})

    def numbers(self, layer: int) -> int:
        """Numbers that the states of a layer hold of one row, whatever their element type."""
        return sum(one[0].numel() for place, one in self._held.items() if place[0] == layer)

    def get(self, place: Place) -> torch.Tensor | None:
        """The state at a place, None before the first tokens. It may be written to: that is how models step it."""
        if place not in self._held:
            return None
        self._held[place] = self._held[place].clone()
        return self._held[place]

    def set(self, place: Place, state: torch.Tensor) -> torch.Tensor:
        """Go on with this state [b, ...]."""
        self._held[place] = _own(state)
        return state

    def extend(self, place: Place, new: torch.Tensor, width: int | None) -> torch.Tensor:
        """Go on with columns new [b, channels, t] behind those held, of which the last `width` stay (None: as many as
        came first, or as are held); all of them [b, channels, width + t], or [b, channels, max(width, t)] at first."""
        before = self._held.get(place)
        if before is None:
            width = new.shape[-1] if width is None else width
            whole = torch.nn.functional.pad(new, (max(0, width - new.shape[-1]), 0))
        else:
            width = before.shape[-1]
            whole = torch.cat((before, new), dim=-1)
        self._held[place] = _own(whole[..., whole.shape[-1] - width :])
        return whole

    def begin(self, passed: int, rows: int | None) -> None:
        """A forward of `rows` (None: not known) begins after `passed` tokens, which `back` takes back until `commit`.
        One before it that was refused before its tokens counted is taken back now.

        SessionError after one that failed later, and for another number of rows than are held.
        """
        if self._held and self._before is not None and passed != self._began:
            raise SessionError(
                f"the forward before went from {self._began} to {passed} tokens and did not come to its end, so that "
                "some layers passed their states on and some may not have; call abort() to go back"
            )
        self.back()
        held = {len(one) for one in self._held.values()}
        if rows is not None and held - {rows}:
            raise SessionError(
                f"the cache holds states of {held.pop()} rows, the model was given {rows}; keep to one batch, or fit "
                "the cache to it by batch_repeat_interleave or batch_select_indices"
            )
        self._before, self._began = dict(self._held), passed

    def back(self) -> None:
        """Have again what was held when the newest forward began, unless it was committed."""
        if self._before is not None:
            self._held = dict(self._before)

    def commit(self) -> None:
        """The newest forward need not go back any more."""
        self._before = None

    def checkpoint(self) -> Rollback:
        """What to call to have again what was held when the newest forward began: its first states were passed on
        before its first attention."""
        return self.back

    def keep(self, passed: int) -> None:
        """Keep what is held after `passed` tokens, to come back to."""
        self._kept[passed] = dict(self._held)

    def refuse_back(self, passed: int, now: int, removed: Iterable[int]) -> None:
        """Refuse to go back from `now` to `passed` tokens where states were not kept. removed: tokens taken by row."""
        if not self._held or passed in (0, now) or (passed in self._kept and len(set(removed)) == 1):
            return
        told = ", ".join(map(str, sorted(self._kept))) or "none"
        raise SessionError(
            f"layers {', '.join(map(str, self.layers))} pass on a state, which cannot go back from {now} tokens to "
            f"{passed}, and not by row; states were kept at: {told}. Call keep_states() at a length to come back to, "
            "or fork() there"
        )

    def truncate(self, passed: int, now: int) -> None:
        """Go back to `passed` tokens, which was not refused."""
        if passed != now:
            self._held = dict(self._kept.get(passed, {}))
            self._kept = {length: kept for length, kept in self._kept.items() if length <= passed}

    def select(self, rows: Sequence[int]) -> None:
        """Go on with copies of the states of these batch rows."""
        chosen = torch.tensor(rows)

        def of_rows(held: dict[Place, torch.Tensor]) -> dict[Place, torch.Tensor]:
            return {place: one.index_select(0, chosen.to(one.device)) for place, one in held.items()}

        self._held, self._kept = of_rows(self._held), {length: of_rows(kept) for length, kept in self._kept.items()}
        self._before = None

    def fork(self) -> States:
        """An independent copy."""
        other = States()
        other._held = dict(self._held)
        other._kept = {length: dict(kept) for length, kept in self._kept.items()}
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of the real storages, kept lengths included."""
        every = (self._held, *self._kept.values())
        return sum({id(one): one.untyped_storage().nbytes() for held in every for one in held.values()}.values())

    @property
    def undo_bytes(self) -> int:
        """Bytes held to take back the newest forward."""
        held = {id(one) for one in self._held.values()}
        before = self._before or {}
        return sum(one.untyped_storage().nbytes() for one in before.values() if id(one) not in held)

    def state(self) -> dict[str, torch.Tensor]:
        """What is held by a name that tells its place, what `restore` reads. Kept lengths are not among it."""
        return {f"{layer}.{sort}.{index}": one for (layer, sort, index), one in self._held.items()}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Take over what `state()` gave."""
        self._held = {_place(name): one for name, one in state.items()}


def expect_states(state: State, rows: int, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
    """The states in a file by name, refused unless each layer has as many numbers of a row as `numbers` tells."""
    found, told = state.all(), [0] * len(numbers)
    for name, one in found.items():
        layer = _place(name)[0]
        if layer >= len(numbers) or one.dtype not in FLOATS or one.dim() < 2 or len(one) != rows:
            raise SessionError(f"'{state.prefix}{name}' is no state of {rows} rows in a model of {len(numbers)} layers")
        state.take(name, one.dtype, one.shape)
        told[layer] += one[0].numel()
    if wrong := [layer for layer, count in enumerate(numbers) if told[layer] != count]:
        layer = wrong[0]
        raise SessionError(f"layer {layer} has a state of {told[layer]} numbers, expected {numbers[layer]}")
    return found


def _place(name: str) -> Place:
    layer, sort, index = (*name.split("."), "", "")[:3]
    if not (layer.isascii() and layer.isdigit() and index.isascii() and index.isdigit()) or name.count(".") != 2:
        raise SessionError(f"state '{name}' does not name layer, sort and number")
    if sort not in ("conv", "recurrent"):
        raise SessionError(f"state '{name}' is neither 'conv' nor 'recurrent'")
    return int(layer[:20]), "conv" if sort == "conv" else "recurrent", int(index[:20])


def _own(state: torch.Tensor) -> torch.Tensor:
    """A state that holds no memory beside its own."""
    return state if state.untyped_storage().nbytes() == state.nbytes else state.clone()
