"""What a training hook is: made of its sentence, attached to a host, asked for its loss, told of every step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from headwise.knobs import Knobs
from headwise.layers.layer import AttentionLayer
from headwise.training_hooks import HookCard


@dataclass(frozen=True)
class Step:
    """One forward of a training: the host, its inputs and labels [batch, tokens], and its logits."""

    model: nn.Module
    ids: Tensor
    labels: Tensor
    logits: Tensor


class Attached:
    """A hook at work on one host. What it does not need it leaves as it is here."""

    def loss(self, step: Step) -> Tensor | None:
        """What is added to the task's loss of this step."""
        return None

    def stepped(self) -> None:
        """After an update of the weights."""

    def finish(self) -> None:
        """After the last update, before the host is asked and saved: nothing of the hook is left in it."""


class Hook(Knobs, ABC):
    """A hook as its sentence says it."""

    name: ClassVar[str]
    card: ClassVar[HookCard]

    @abstractmethod
    def attach(self, model: nn.Module) -> Attached:
        """Put it onto a host, before its optimiser is made; RecipeError where the host has nothing for it."""


def attention_layers(model: nn.Module) -> Iterator[AttentionLayer]:
    """The attention layers of a host, in order."""
    return (one for one in model.modules() if isinstance(one, AttentionLayer))


class Heard(Attached):
    """A hook that listens to what some modules give: `heard` is what each gave in the newest forward."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.heard: dict[int, Tensor] = {}
        self.handles = [one.register_forward_hook(self._hear(place)) for place, one in enumerate(modules)]

    def _hear(self, place: int):  # type: ignore[no-untyped-def]
        def hear(module: nn.Module, given: tuple[object, ...], made: Tensor) -> None:
            self.heard[place] = made

        return hear

    def finish(self) -> None:
        for handle in self.handles:
            handle.remove()
