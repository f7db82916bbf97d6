"""What each head adds to the hidden states, and how far that moves the token that is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from headwise.calibrate.layerwise import decoder_layers
from headwise.calibrate.measures.outputs import output_modules
from headwise.calibrate.subject import model_of
from headwise.errors import UnsupportedModel
from headwise.observe import LayerAttention, Subject


@dataclass(frozen=True, eq=False)
class Stream:
    """What a forward showed at p places of a text. read: by layer that attends, what its heads read [p, H, e].
    final: the last layer's output [p, width]. logits: [p, vocabulary]. project: by layer, the module that turns what
    all heads read into hidden states."""

    read: dict[int, torch.Tensor]
    final: torch.Tensor
    logits: torch.Tensor
    project: dict[int, Callable[[torch.Tensor], torch.Tensor]]

    @torch.no_grad()
    def added(self, layer: int) -> torch.Tensor:
        """What each head of a layer adds to the hidden states, float32 [H, p, width]."""
        read = self.read[layer]
        heads = read.shape[1]
        alone = torch.eye(heads, dtype=read.dtype, device=read.device)[:, None, :, None] * read  # [H, p, H, e]
        project = self.project[layer]
        return (project(alone.flatten(2)) - project(torch.zeros_like(alone[:1, :1]).flatten(2))).float()


@torch.no_grad()
def stream(subject: Subject, ids: torch.Tensor, places: Sequence[int] | torch.Tensor) -> Stream:
    """Read `ids [1, n]` once."""
    last, modules = _last_layer(subject), output_modules(subject)
    places = torch.as_tensor(places)
    read: dict[int, torch.Tensor] = {}
    final: list[torch.Tensor] = []

    def fed(layer: int, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        heads = subject.geometry.layers[layer].query_heads
        read[layer] = inputs[0][0, places].unflatten(-1, (heads, -1)).clone()

    def left(_: torch.nn.Module, inputs: Any, output: Any) -> None:
        final.append(_states(output)[0, places].float())

    with ExitStack() as hooks:
        for layer, module in modules.items():
            hooks.callback(module.register_forward_pre_hook(partial(fed, layer)).remove)
        hooks.callback(last.register_forward_hook(left).remove)
        logits = subject.logits(ids.to(subject.device), places, LayerAttention.full).float()
    return Stream(read, final[0], logits, dict(modules))


def directions(subject: Subject, found: Stream, targets: torch.Tensor) -> torch.Tensor:
    """Directions [p, width] of the final states whose product with what a part adds is what that part adds to the
    logit of `targets [p]`, less the mean logit, as it leaves the last norm's scale as it is.

    Of a logit f behind a norm that takes a state's length away, f(h) = L h with L of that scale; its gradient misses
    the part along h, which is f(h) h / |h|^2.
    """
    last = _last_layer(subject)
    states = found.final.clone().requires_grad_()

    def put(_: torch.nn.Module, inputs: Any, output: Any) -> Any:
        handed = states[None].to(_states(output))
        return (handed, *output[1:]) if isinstance(output, tuple) else handed

    ids = torch.zeros(1, len(states), dtype=torch.int64, device=subject.device)
    with ExitStack() as hooks, torch.enable_grad():
        hooks.callback(last.register_forward_hook(put).remove)
        logits = subject.logits(ids, torch.arange(len(states)), LayerAttention.full).float()
        told = logits.gather(1, targets.to(logits.device)[:, None])[:, 0] - logits.mean(-1)
        (slope,) = torch.autograd.grad(told.sum(), states)
    along = told.detach() / found.final.square().sum(-1)
    return slope + along[:, None] * found.final


def _states(output: Any) -> torch.Tensor:
    states: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _last_layer(subject: Subject) -> torch.nn.Module:
    layers = decoder_layers(model_of(subject))
    if not layers:
        raise UnsupportedModel("the decoder layers do not lie in one list: the final state cannot be read")
    return layers[-1]
