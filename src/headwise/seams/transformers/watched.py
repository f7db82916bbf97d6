"""Whether a compiled layer's parts are still those that were found. It is asked of every layer at every token, so what
can be walked through by the interpreter's own functions is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from operator import contains, is_, itemgetter
from typing import Any

from torch import Tensor, nn

_RECORDS = "transformers.utils.output_capturing"  # whose hooks do nothing where no such outputs are asked for
_get: Callable[[dict[str, Any], str], Any] = dict.get
_before, _after = itemgetter("_forward_pre_hooks"), itemgetter("_forward_hooks")


class Watched:
    """Inner modules of a layer by parent and name, their numbers by module and name, and all parameters and buffers
    that these modules hold."""

    def __init__(
        self, places: Sequence[tuple[nn.Module, str, nn.Module]], numbers: Sequence[tuple[nn.Module, str, object]]
    ) -> None:
        self._parents = [parent._modules for parent, _, _ in places]
        self._names = [name for _, name, _ in places]
        self._children = [child for _, _, child in places]
        self._kinds, self._states = list(map(type, self._children)), [child.__dict__ for child in self._children]
        self._modules, self._numbers = [one for one, _, _ in numbers], [name for _, name, _ in numbers]
        self._values = [value for _, _, value in numbers]
        kept = [held for child in self._children for held in (child._parameters, child._buffers)]
        self._kept = [held for held in kept for _ in held]
        self._keys = [name for held in kept for name in held]
        self._found: list[Tensor | None] = []
        self._weights: list[Tensor] = []
        self._there = len(self.weights())

    def stand(self) -> bool:
        """Whether the modules are the same, in their places, with the same numbers, and nothing listens to them."""
        if list(map(_get, self._parents, self._names)) != self._children:
            return False
        if list(map(type, self._children)) != self._kinds or any(map(contains, self._states, repeat("forward"))):
            return False
        if any(map(_before, self._states)) or (any(map(_after, self._states)) and any(map(listens, self._children))):
            return False
        return list(map(getattr, self._modules, self._numbers, repeat(None))) == self._values

    def weights(self) -> list[Tensor]:
        """What is stored in them now."""
        found: list[Tensor | None] = list(map(_get, self._kept, self._keys))
        if len(found) != len(self._found) or not all(map(is_, found, self._found)):
            self._found, self._weights = found, [one for one in found if one is not None]
        return self._weights

    def complete(self) -> bool:
        """Whether as much is stored in them as at first."""
        return len(self.weights()) >= self._there > 0

    def places(self) -> list[object]:
        """Where that lies, and how."""
        weights = self.weights()
        return [*map(Tensor.data_ptr, weights), *map(Tensor.stride, weights)]


def listens(child: nn.Module) -> bool:
    """Whether a hook of a module's forward is there for more than outputs that transformers was asked for."""
    return any(getattr(hook, "__module__", "") != _RECORDS for hook in child._forward_hooks.values())
