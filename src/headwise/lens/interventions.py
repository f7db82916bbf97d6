"""Changing what heads read while a model runs: each a context, after which the model is what it was, bit for bit.

A head is changed where its output enters the layer's output projection, by a hook of torch on that module, which is
found by what it is fed. So a change holds for every way of running the model: batches, caches, `generate`, gradients.
`places` narrow a change to some tokens, counted from 0 in each forward; without them it is of all tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import torch

from headwise.calibrate.measures.outputs import output_modules
from headwise.calibrate.subject import ModelSubject
from headwise.errors import ShapeError
from headwise.seams.transformers.beside import Head, check_heads
from headwise.seams.transformers.cache import PreTrainedModel

Change = Callable[[torch.Tensor, Head], torch.Tensor]  # what a head read [b, t, e], to what it is to have read
Places = Sequence[int] | None  # tokens of each forward that a change is of; None is all


@contextmanager
def ablated(model: PreTrainedModel, heads: Collection[Head], places: Places = None) -> Iterator[None]:
    """Within, these heads, (layer, query head) each, read nothing: their output is zero."""
    with scaled(model, dict.fromkeys(heads, 0.0), places):
        yield


@contextmanager
def scaled(
    model: PreTrainedModel, factors: Mapping[Head, float | torch.Tensor], places: Places = None
) -> Iterator[None]:
    """Within, the outputs of these heads are multiplied by these factors: 0 ablates, 1 changes no bit. A factor that is
    a tensor of one number has a gradient."""
    change = _at(places, lambda x, head: x * torch.as_tensor(factors[head]).to(x))
    with _changed(model, factors, change):
        yield


@contextmanager
def steered(model: PreTrainedModel, directions: Mapping[Head, torch.Tensor], places: Places = None) -> Iterator[None]:
    """Within, a direction [e] is added to what each of these heads read."""

    def add(x: torch.Tensor, head: Head) -> torch.Tensor:
        if directions[head].shape != x.shape[-1:]:
            raise ShapeError(
                f"head {head[0]}.{head[1]} is steered by {list(directions[head].shape)}, and reads vectors of "
                f"{x.shape[-1]}; give a direction [{x.shape[-1]}]"
            )
        return x + directions[head].to(x)

    with _changed(model, directions, _at(places, add)):
        yield


@contextmanager
def patched(model: PreTrainedModel, outputs: Mapping[Head, torch.Tensor], places: Places = None) -> Iterator[None]:
    """Within, each of these heads says what it is given, [b, t, e], as `recorded` found it of another prompt, in every
    forward of b rows of t tokens. Forwards of other sizes raise ShapeError."""

    def put(x: torch.Tensor, head: Head) -> torch.Tensor:
        return _like(outputs[head], x, head)

    with _changed(model, outputs, _at(places, put)):
        yield


@dataclass(frozen=True)
class Patch:
    """What is patched in one row of a batch: a head, at these places of the text or, with None, at all."""

    head: Head
    places: tuple[int, ...] | None = None


@contextmanager
def patched_rows(
    model: PreTrainedModel, patches: Sequence[Patch], outputs: Mapping[Head, torch.Tensor]
) -> Iterator[None]:
    """Within, row i of every forward has patch i and no other, so that as many patches as rows are tried at once.

    outputs: as `recorded` found them, [rows, t, e] by head.
    """
    by_head: dict[Head, list[int]] = defaultdict(list)
    for row, patch in enumerate(patches):
        by_head[patch.head].append(row)

    def put(x: torch.Tensor, head: Head) -> torch.Tensor:
        if len(x) != len(patches):
            raise ShapeError(f"{len(patches)} patches, one a row, and the forward has {len(x)} rows; give as many")
        given, found = _like(outputs[head], x, head), x.clone()
        for row in by_head[head]:
            places = _checked(patches[row].places, x.shape[1])
            found[row, places] = given[row, places]
        return found

    with _changed(model, by_head, put):
        yield


def _at(places: Places, change: Change) -> Change:
    """The change, of these tokens alone."""

    def narrowed(x: torch.Tensor, head: Head) -> torch.Tensor:
        here = _checked(places, x.shape[1])
        mask = torch.zeros(x.shape[1], 1, dtype=torch.bool, device=x.device)
        mask[here] = True
        return torch.where(mask, change(x, head), x)

    if places is None:
        return change
    return narrowed if len(places) else _nothing


def _nothing(x: torch.Tensor, head: Head) -> torch.Tensor:
    """The change of no token."""
    return x


def _checked(places: Places, tokens: int) -> list[int] | slice:
    """Places as an index of a forward's tokens."""
    if places is None:
        return slice(None)
    for place in places:
        if not 0 <= place < tokens:
            raise ShapeError(f"place {place}: the forward has {tokens} tokens; give places 0 to {tokens - 1}")
    return list(places)


def _like(given: torch.Tensor, x: torch.Tensor, head: Head) -> torch.Tensor:
    """What a head is given, checked to be of the forward's sizes."""
    if given.shape != x.shape:
        raise ShapeError(
            f"head {head[0]}.{head[1]} is patched by [b, t, e] = {list(given.shape)}, the forward has "
            f"{list(x.shape)}; patch from a prompt of as many tokens and rows"
        )
    return given.to(x)


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
    if change is _nothing:
        return inputs
    read = list(inputs[0].unflatten(-1, (count, -1)).unbind(-2))
    for head in own:
        read[head] = change(read[head], (layer, head))
    return (torch.stack(read, dim=-2).flatten(-2),)
