"""Decoder layers whose decoding steps run in two native calls, with headwise's attention between them; or, where they
may wait for each other, all layers in one.

A layer keeps its place, its parts and their names: its class alone is exchanged for one that inherits from it. So hooks
on the layer, what transformers records of it and its checkpointing work as before, copies are layers of their own, and
whatever a step is not made for goes to the forward that the model brought. An exchanged `forward` on the instance would
be lost in some of these, and a module around the layer would change the names in `state_dict`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from headwise.errors import UnsupportedModel
from headwise.kernels.native.layer import MOST_ROWS, After, Before, Enter, Leave, refuse
from headwise.kernels.native.prompt import PromptEnter, PromptLeave
from headwise.seams.transformers.door import Door
from headwise.seams.transformers.watched import Watched, listens

_HELD = "_headwise_step"
# What models hand to their layers; of these a step needs the first three, and the others do not change it.
_KNOWN = {
    *("position_embeddings", "attention_mask", "cache", "past_key_values", "position_ids", "cache_position"),
    *("use_cache", "output_attentions", "output_hidden_states", "return_dict"),
}


class Parts(ABC):
    """What a decoder layer is made of. places: every inner module that a step stands for, by parent and name. numbers:
    attributes of modules that it computes by, such as the scale of scores, as they were when it was tried."""

    places: tuple[tuple[nn.Module, str, nn.Module], ...]
    numbers: tuple[tuple[nn.Module, str, object], ...]

    @abstractmethod
    def read(self) -> tuple[Before, After]:
        """The weights as they are now; UnsupportedModel where they do not fit together."""


@dataclass(frozen=True)
class Manner:
    """How a layer calls attention, and answers: its number, the scale and the cap of its scores, whether in a tuple."""

    layer: int
    scale: float
    softcap: float | None
    in_tuple: bool


@dataclass(frozen=True, eq=False)
class Link:
    """A layer's place in a chain: all its steps in their order, the layer itself, and the one that takes its output
    straight from it, if any, with where in the model that one is found."""

    steps: tuple[Step, ...]
    place: int
    layer: nn.Module
    following: nn.Module | None
    found: tuple[Mapping[str, nn.Module | None], str] | None

    def is_seen(self) -> bool:
        """Whether anything but the following layer's step may look at what this layer gives."""
        then, own = self.following, self.layer
        if then is None or self.found is None or self.found[0].get(self.found[1]) is not then:
            return True
        if not isinstance(then, CompiledLayer) or "forward" in then.__dict__ or "forward" in own.__dict__:
            return True
        return bool(then._forward_pre_hooks) or (bool(own._forward_hooks) and listens(own))


class Step:
    """The two calls of one layer, filled in anew whenever its weights lie elsewhere. link: its place among layers that
    may wait for each other (`chain.Waiter`)."""

    link: Link | None = None

    def __init__(self, parts: Parts, manner: Manner) -> None:
        self.parts, self.manner = parts, manner
        self.places: list[object] = []
        self.calls: tuple[Enter, Leave] | None = None
        self.dtype: torch.dtype | None = None

    def __reduce__(self) -> tuple[type[Step], tuple[Parts, Manner]]:
        """Copies fill in their own addresses."""
        return Step, (self.parts, self.manner)

    @cached_property
    def watched(self) -> Watched:
        """The parts, noted at the first step and not before, as a copy is made with its layer."""
        return Watched(self.parts.places, self.parts.numbers)

    def ready(self) -> bool:
        """Whether the parts are those that were found, nothing listens to them, and their weights can be read."""
        if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks or not self.watched.stand():
            return False
        places = self.watched.places()
        if places != self.places:
            self.places, self.calls = places, None
            if not self.why_not():
                before, after = self.parts.read()
                self.calls, self.dtype = (Enter(before), Leave(after)), before.q.weight.dtype
        return self.calls is not None

    def prompts(self) -> tuple[PromptEnter, PromptLeave]:
        """The same for the many rows of a prompt; of a step that is ready."""
        assert self.calls is not None, "it is ready"
        return PromptEnter(self.calls[0]), PromptLeave(self.calls[1])

    def why_not(self) -> str:
        """Why the weights cannot be read; empty if they can."""
        weights = self.watched.weights()
        if not self.watched.complete():
            return "weights that were taken away"
        plain = [one for one in weights if isinstance(one, nn.Parameter)]
        if why := refuse(plain, [one for one in weights if not isinstance(one, nn.Parameter)]):
            return why
        try:
            self.parts.read()
        except UnsupportedModel as error:
            return str(error)
        return ""

    def learns(self) -> bool:
        """Whether gradients of any weight are wanted."""
        return any(one.requires_grad for one in self.watched.weights())


class CompiledLayer(nn.Module):
    """Mixed into a decoder layer's class: a few rows over a headwise cache go through two native calls."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """hidden_states [b, t, hidden] -> the same, as the layer's own forward gives it."""
        door = kwargs.get("cache")
        if door is None:
            door = kwargs.get("past_key_values")
        step: Step = self.__dict__[_HELD]
        waiter = door.waiter if isinstance(door, Door) else None
        takes = isinstance(door, Door) and not args and self._takes(step, hidden_states, kwargs)
        if waiter is not None:
            if takes and _few(hidden_states) and (later := waiter.take(step, hidden_states, kwargs)) is not None:
                return (later,) if step.manner.in_tuple else later
            waiter.finish()
        if not takes:
            return super().forward(hidden_states, *args, **kwargs)
        assert step.calls is not None and isinstance(door, Door)
        enter, leave = step.calls if _few(hidden_states) else step.prompts()
        x, manner = hidden_states.contiguous(), step.manner
        q, k, v = enter(x, *kwargs["position_embeddings"])
        attended = door.direct(manner.layer, q, k, v, kwargs.get("attention_mask"), manner.scale, manner.softcap)
        out = leave(attended, x)
        return (out,) if manner.in_tuple else out

    def _takes(self, step: Step, x: Tensor, kwargs: dict[str, Any]) -> bool:
        """Whether a step computes what the layer's own forward would."""
        if self.training or type(x) is not Tensor or x.dim() != 3 or not x.numel():
            return False
        if not kwargs.keys() <= _KNOWN or kwargs.get("output_attentions") or not angles_given(kwargs, x):
            return False
        if torch.is_grad_enabled() and (x.requires_grad or step.learns()):
            return False
        if torch.is_autocast_enabled("cpu"):
            return False
        return step.ready() and x.dtype is step.dtype and x.device.type == "cpu"

    def __reduce_ex__(self, protocol: object) -> Any:
        """Copies and pickles are made by the layer's own class, which has a name to be found by."""
        return _blank, (type(self).__mro__[2],), self.__dict__.copy()


def _few(x: Tensor) -> bool:
    """Whether x [b, t, hidden] is of as few rows as a step has, and no prompt."""
    return x.shape[0] * x.shape[1] <= MOST_ROWS


def angles_given(kwargs: dict[str, Any], x: Tensor) -> bool:
    """Whether the rotary embedding is given as a step takes it: cos and sin [1 or b, t, width]."""
    given = kwargs.get("position_embeddings")
    if not isinstance(given, tuple) or len(given) != 2:
        return False
    cos, sin = given
    right = (
        isinstance(cos, Tensor) and cos.dim() == 3 and cos.shape[1] == x.shape[1] and cos.shape[0] in (1, x.shape[0])
    )
    return right and cos.shape == sin.shape and cos.dtype in (torch.float32, torch.bfloat16) and cos.device == x.device


_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _class(own: type[nn.Module]) -> type[nn.Module]:
    """The class of compiled layers that are of class `own` otherwise, under its name."""
    if own not in _classes:
        names = {"__module__": own.__module__, "__qualname__": own.__qualname__}
        _classes[own] = type(own.__name__, (CompiledLayer, own), names)
    return _classes[own]


def _blank(own: type[nn.Module]) -> nn.Module:
    kind = _class(own)
    return kind.__new__(kind)


def compile_layer(layer: nn.Module, step: Step) -> None:
    """Let a layer take its decoding steps through native calls."""
    layer.__dict__[_HELD] = step
    layer.__class__ = _class(type(layer))


def link_layers(model: nn.Module, layers: Sequence[nn.Module]) -> None:
    """Let compiled layers of a model wait for each other in decoding steps, where one's output is the next one's
    input."""
    found = {id(child): (part._modules, name) for part in model.modules() for name, child in part._modules.items()}
    held: list[tuple[nn.Module, Step]] = [(layer, layer.__dict__[_HELD]) for layer in layers]
    held.sort(key=lambda one: one[1].manner.layer)
    steps = tuple(step for _, step in held)
    for place, (layer, step) in enumerate(held):
        following = held[place + 1] if place + 1 < len(held) else None
        follows = following is not None and following[1].manner.layer == step.manner.layer + 1
        then = following[0] if following is not None and follows else None
        step.link = Link(steps, place, layer, then, None if then is None else found.get(id(then)))


def unlink_layers(layers: Sequence[nn.Module]) -> None:
    """Let each compiled layer be computed at its turn."""
    for layer in layers:
        layer.__dict__[_HELD].link = None


def restore_layers(model: nn.Module) -> None:
    """Put back the forwards of all compiled layers."""
    for layer in [one for one in model.modules() if isinstance(one, CompiledLayer)]:
        del layer.__dict__[_HELD]
        layer.__class__ = type(layer).__mro__[2]
