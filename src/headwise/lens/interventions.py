"""Changing what heads read while a model runs: each a context, after which the model is what it was, bit for bit.

A head is changed where its output enters the layer's output projection, by a hook of torch on that module, which is
found by what it is fed. So a change holds for every way of running the model: batches, caches, `generate`, gradients.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from weakref import WeakKeyDictionary

import torch

from headwise.calibrate.measures.outputs import output_modules
from headwise.calibrate.subject import ModelSubject
from headwise.errors import ShapeError
from headwise.seams.transformers.beside import Head, check_heads
from headwise.seams.transformers.cache import PreTrainedModel

Change = Callable[[torch.Tensor, Head], torch.Tensor]  # what a head read [b, t, e], to what it is to have read


@contextmanager
def ablated(model: PreTrainedModel, heads: Collection[Head]) -> Iterator[None]:
    """Within, these heads, (layer, query head) each, read nothing: their output is zero."""
    with scaled(model, dict.fromkeys(heads, 0.0)):
        yield


@contextmanager
def scaled(model: PreTrainedModel, factors: Mapping[Head, float | torch.Tensor]) -> Iterator[None]:
    """Within, the outputs of these heads are multiplied by these factors: 0 ablates, 1 changes no bit. A factor that is
    a tensor of one number has a gradient."""
    with _changed(model, factors, lambda x, head: x * torch.as_tensor(factors[head]).to(x)):
        yield


@contextmanager
def patched(model: PreTrainedModel, outputs: Mapping[Head, torch.Tensor]) -> Iterator[None]:
    """Within, each of these heads says what it is given, [b, t, e], as `recorded` found it of another prompt, in every
    forward of b rows of t tokens. Forwards of other sizes raise ShapeError."""

    def put(x: torch.Tensor, head: Head) -> torch.Tensor:
        given = outputs[head]
        if given.shape != x.shape:
            raise ShapeError(
                f"head {head[0]}.{head[1]} is patched by [b, t, e] = {list(given.shape)}, the forward has "
                f"{list(x.shape)}; patch from a prompt of as many tokens and rows"
            )
        return given.to(x)

    with _changed(model, outputs, put):
        yield


@contextmanager
def recorded(model: PreTrainedModel, heads: Collection[Head]) -> Iterator[dict[Head, torch.Tensor]]:
    """Within, what these heads read in the latest forward is noted, by head, [b, t, e]; nothing is changed."""
    noted: dict[Head, torch.Tensor] = {}

    def note(x: torch.Tensor, head: Head) -> torch.Tensor:
        noted[head] = x.detach().clone()
        return x

    with _changed(model, heads, note):
        yield noted


@contextmanager
def _changed(model: PreTrainedModel, heads: Collection[Head], change: Change) -> Iterator[None]:
    """Within, `change` has the last word on what each of these heads reads, [b, t, e]."""
    subject = ModelSubject(model)
    check_heads(subject.geometry, heads)
    by_layer: dict[int, set[int]] = defaultdict(set)
    for layer, head in heads:
        by_layer[layer].add(head)
    modules = _projections(subject) if by_layer else {}
    with ExitStack() as hooks:
        for layer, own in by_layer.items():
            hook = partial(_pass, change, layer, own, subject.geometry.layers[layer].query_heads)
            hooks.callback(modules[layer].register_forward_pre_hook(hook).remove)
        yield


_found: WeakKeyDictionary[torch.nn.Module, dict[int, torch.nn.Module]] = WeakKeyDictionary()


def _projections(subject: ModelSubject) -> dict[int, torch.nn.Module]:
    """The output projections by layer, found once, before any change that another is made within, and again where
    modules were exchanged."""
    kept, there = _found.get(subject.model, {}), {id(one) for one in subject.model.modules()}
    if not kept or not all(id(one) in there for one in kept.values()):
        _found[subject.model] = kept = output_modules(subject)
    return kept


def _pass(
    change: Change, layer: int, own: Collection[int], count: int, module: torch.nn.Module, inputs: tuple[torch.Tensor]
) -> tuple[torch.Tensor]:
    """A hook before a layer's output projection, of which `count` heads' outputs [b, t, H * e] are the input."""
    read = list(inputs[0].unflatten(-1, (count, -1)).unbind(-2))
    for head in own:
        read[head] = change(read[head], (layer, head))
    return (torch.stack(read, dim=-2).flatten(-2),)
