"""Whether a decoder layer's step in native calls is what the layer itself computes, tried on random hidden states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from headwise.cache.states import States
from headwise.errors import SessionError, UnsupportedModel
from headwise.kernels.native.layer import Enter, Leave
from headwise.kernels.native.prompt import PromptEnter, PromptLeave
from headwise.seams.transformers.cache import Cache
from headwise.seams.transformers.compiled import (
    Manner,
    Parts,
    Step,
    angles_given,
    compile_layer,
    link_layers,
    unlink_layers,
)
from headwise.seams.transformers.door import Door, forget
from headwise.seams.transformers.forward import forward
from headwise.seams.transformers.probe import Asked
from headwise.seams.transformers.recorder import probe_ids, text_config

TOKENS = 5
FAR = 20_000  # tokens further on, where a layer may do by its position what it does not do near the start
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # what roundings may come to, as a share of the whole
SIZES = (0.02, 4.0)  # of hidden states: what is added to them is seen beside small ones, and where it saturates, large


@dataclass(frozen=True)
class Handed:
    """What a layer handed to attention."""

    layer: int
    q: Tensor
    k: Tensor
    v: Tensor
    asked: Asked


class Listener(Door):
    """A cache that notes what was handed over last; its answer is each query's own value, and a little of the query."""

    def __init__(self, layers: int) -> None:
        self.windows = (None,) * layers
        self.states = States()
        self.handed: Handed | None = None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, asked: Asked) -> Tensor:
        self.handed = Handed(layer, q, k, v, asked)
        return v.repeat_interleave(q.shape[1] // v.shape[1], dim=1) * (1 + q.mean(-1, keepdim=True))


@dataclass(frozen=True)
class Seen:
    """A decoder layer with the arguments that its model gave it beside hidden states, and what it handed over."""

    layer: nn.Module
    hidden: int
    kwargs: dict[str, Any]
    handed: Handed


def seen_layers(model: PreTrainedModel) -> list[Seen]:
    """All layers of an attached model that are given its cache, from one forward of a few tokens."""
    listener = Listener(text_config(model).num_hidden_layers)
    found: list[Seen] = []

    def after(layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if any(one is listener for one in kwargs.values()) and listener.handed is not None:
            found.append(Seen(layer, args[0].shape[-1], kwargs, listener.handed))

    layers = [one for one in model.modules() if isinstance(one, GradientCheckpointingLayer)]
    hooks = [layer.register_forward_hook(after, with_kwargs=True) for layer in layers]
    try:
        forward(model, listener, probe_ids(model, TOKENS))
    finally:
        forget()
        for hook in hooks:
            hook.remove()
    return found


def try_layer(seen: Seen, parts_of: Callable[[nn.Module, Handed], Parts]) -> str:
    """Why a layer cannot take its steps through native calls; empty after it was made to."""
    try:
        parts = parts_of(seen.layer, seen.handed)
    except UnsupportedModel as error:
        return str(error)
    scoring = seen.handed.asked.scoring
    if scoring.sinks is not None:
        return "sink logits that join its softmax"
    in_tuple = isinstance(_own(seen, _random(seen, 1.0))[0], tuple)
    step = Step(parts, Manner(seen.handed.layer, scoring.scale, scoring.softcap, in_tuple))
    if why := step.why_not():
        return why
    if not angles_given(seen.kwargs, seen.handed.v.new_empty(1, TOKENS, 1)):
        return "positions that are not given as cosines and sines"
    if not step.ready() or step.calls is None:
        return "hooks on its parts"
    for enter, leave in (step.calls, step.prompts()):
        if why := next((why for size in SIZES if (why := _difference(seen, enter, leave, size))), ""):
            return why
    compile_layer(seen.layer, step)
    return ""


def try_chain(model: PreTrainedModel, layers: Sequence[nn.Module]) -> str:
    """Why compiled layers cannot wait for each other; empty after they were made to, as the model then gives the same
    numbers."""
    alone = _steps(model)
    link_layers(model, layers)
    with suppress(SessionError):
        if torch.equal(_steps(model), alone):
            return ""
    unlink_layers(layers)
    return "the model reads what a layer gives before the next one does"


def _steps(model: PreTrainedModel) -> Tensor:
    """Logits of a short text's steps of 1 and 2 tokens over a cache of its own."""
    cache, ids = Cache(model), probe_ids(model, TOKENS + 3)
    forward(model, cache, ids[:, :TOKENS])
    return torch.cat([forward(model, cache, ids[:, part]).logits for part in (slice(TOKENS, -2), slice(-2, None))], 1)


def _random(seen: Seen, size: float) -> Tensor:
    """Hidden states for a layer, in a batch of two."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, TOKENS, seen.hidden, generator=generator).mul(size).to(seen.handed.q.dtype)


def _own(seen: Seen, x: Tensor) -> tuple[Any, Handed]:
    """What the layer itself makes of x, far from the start, and hands over."""
    listener = Listener(seen.handed.layer + 1)
    kwargs: dict[str, Any] = {name: listener if isinstance(one, Listener) else one for name, one in seen.kwargs.items()}
    for name in ("position_ids", "cache_position"):
        if isinstance(kwargs.get(name), Tensor):
            kwargs[name] = kwargs[name] + FAR
    out = seen.layer(x, **kwargs)
    assert listener.handed is not None
    return out, listener.handed


def _difference(seen: Seen, enter: Enter | PromptEnter, leave: Leave | PromptLeave, size: float) -> str:
    """How the native calls differ from the layer on random hidden states of a size; empty where by rounding only."""
    x = _random(seen, size)
    expected, handed = _own(seen, x)
    q, k, v = enter(x, *seen.kwargs["position_embeddings"])
    listener = Listener(handed.layer + 1)
    out = leave(listener.attend(handed.layer, handed.q, handed.k, handed.v, None, handed.asked), x)
    expected = expected[0] if isinstance(expected, tuple) else expected
    if handed.asked.scoring != seen.handed.asked.scoring:
        return "scores that are scaled by position"
    for name, found, own in (
        ("queries", q, handed.q),
        ("keys", k, handed.k),
        ("values", v, handed.v),
        ("output", out, expected),
    ):
        if found.shape != own.shape:
            return f"{name} of another shape than the native ones"
        error = float((found - own).float().norm() / own.float().norm().clamp_min(1e-30))
        if not error <= LIMITS[x.dtype]:
            return f"{name} that differ from the native ones by more than {LIMITS[x.dtype]:.0e}"
    return ""
