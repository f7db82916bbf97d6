"""What a file says of a store, checked before anything is made of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from headwise.errors import SessionError


@dataclass
class State:
    """Tensors by name, of which those with a `prefix` are a store's. What was asked for is noted in `taken`, so that
    what nobody asks for can be refused."""

    tensors: dict[str, torch.Tensor]
    prefix: str = ""
    taken: set[str] = field(default_factory=set)

    def under(self, prefix: str) -> State:
        """The tensors whose names go on with `prefix`."""
        return State(self.tensors, self.prefix + prefix, self.taken)

    def all(self) -> dict[str, torch.Tensor]:
        """The store's tensors by their names without the prefix."""
        own = {name: tensor for name, tensor in self.tensors.items() if name.startswith(self.prefix)}
        return {name.removeprefix(self.prefix): tensor for name, tensor in own.items()}

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.tensors

    def take(self, name: str, dtype: torch.dtype, sizes: Sequence[int | None]) -> torch.Tensor:
        """The tensor `name`; SessionError unless it has this element type and these sizes (None: any)."""
        whole = self.prefix + name
        tensor = self.tensors.get(whole)
        told = f"{str(dtype).removeprefix('torch.')} [{', '.join('any' if n is None else str(n) for n in sizes)}]"
        if tensor is None:
            raise SessionError(f"tensor '{whole}' is missing, expected {told}")
        fits = len(tensor.shape) == len(sizes) and all(n in (None, m) for n, m in zip(sizes, tensor.shape, strict=True))
        if tensor.dtype != dtype or not fits:
            found = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            raise SessionError(f"tensor '{whole}' is {found}, expected {told}")
        self.taken.add(whole)
        return tensor

    def counts(self, name: str, many: int, least: int = 0) -> list[int]:
        """The `many` whole numbers in a tensor, each at least `least`."""
        numbers: list[int] = self.take(name, torch.int64, [many]).tolist()
        if any(number < least for number in numbers):
            raise SessionError(f"tensor '{self.prefix}{name}' has {min(numbers)}, at least {least} is expected")
        return numbers

    def lengths(self, lanes: int, seen: Sequence[int]) -> list[int]:
        """Tokens stored by lane, none more than it has seen."""
        lengths = self.counts("lengths", lanes)
        for lane, (length, most) in enumerate(zip(lengths, seen, strict=True)):
            if length > most:
                raise SessionError(f"'{self.prefix}lengths': lane {lane} holds {length} tokens and has seen {most}")
        return lengths

    def positions(self, lengths: Sequence[int], seen: Sequence[int]) -> None:
        """Refuse positions that are not of tokens seen. They need not ascend: levels take tokens over in any order."""
        positions = self.take("position", torch.int32, [sum(lengths), 1])
        for lane, own in enumerate(positions[:, 0].split(list(lengths))):
            if len(own) and (own.min() < 0 or own.max() >= seen[lane]):
                raise SessionError(f"'{self.prefix}position': some of lane {lane} are not from 0 to below {seen[lane]}")

    def refuse_others(self) -> None:
        """Refuse tensors that were not asked for."""
        if others := sorted(set(self.tensors) - self.taken):
            raise SessionError(f"tensor '{others[0]}' ({len(others)} of them) has no place in a session of this plan")


def split(numbers: Sequence[int], lengths: Iterable[int]) -> list[Sequence[int]]:
    """The numbers cut into runs of these lengths."""
    cut, at = [], 0
    for length in lengths:
        cut.append(numbers[at : at + length])
        at += length
    return cut
