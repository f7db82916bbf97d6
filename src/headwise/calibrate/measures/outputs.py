"""What a layer's output projection makes of each head's values; it is found by what it is fed, not by its name."""

from __future__ import annotations

from contextlib import ExitStack

import torch

from headwise.calibrate.subject import model_of
from headwise.errors import HeadwiseError
from headwise.geometry import LayerGeometry
from headwise.observe import Found, LayerAttention, Material, Progress, Subject, measure

MOST = 256  # channels of the hidden state that are looked at


def output_projections(subject: Subject, most: int = MOST) -> torch.Tensor:
    """Matrices [layers, kv_heads, g, e, n]: how a value's channels go into n channels of the hidden state, by query
    head; n is `most`, spread evenly, or all there are. HeadwiseError as `output_modules` raises it."""
    geometry = subject.geometry
    for letter in "ge":
        geometry.size(letter)  # refused before any work
    fed = _fed_modules(subject)
    return geometry.gathered({layer: _matrix(*one, geometry.layers[layer], most) for layer, one in fed.items()})


def output_modules(subject: Subject) -> dict[int, torch.nn.Module]:
    """By layer that attends, the module that is fed what all its query heads read, [..., H * e], and turns it into
    hidden states.

    HeadwiseError where nothing linear is fed a layer's attention as it is, as where a gate comes in between.
    """
    return {layer: module for layer, (module, _) in _fed_modules(subject).items()}


def _fed_modules(subject: Subject) -> dict[int, tuple[torch.nn.Module, torch.Tensor]]:
    """By layer that attends, that module, and a vector that it was fed."""
    model = model_of(subject)
    given: dict[int, torch.Tensor] = {}
    found: dict[int, torch.nn.Module] = {}

    def attention(one: LayerAttention) -> torch.Tensor:
        out = torch.randn(one.q.shape[1], one.v.shape[-1], generator=torch.Generator().manual_seed(one.layer))
        out = out.to(one.q)[None, :, None].expand(-1, -1, one.q.shape[2], -1)
        given[one.layer] = out[0, :, 0].flatten()
        return out

    def fed(module: torch.nn.Module, inputs: tuple[object, ...]) -> None:
        x, layer = (inputs or (None,))[0], max(given, default=-1)
        if layer in given and layer not in found and isinstance(x, torch.Tensor) and x.is_floating_point():
            last = x.flatten()[-len(given[layer]) :]
            if x.shape[-1] == len(last) and torch.equal(last, given[layer]):
                found[layer] = module

    with ExitStack() as hooks, torch.no_grad():
        for module in model.modules():
            if not any(True for _ in module.children()):
                hooks.callback(module.register_forward_pre_hook(fed).remove)
        subject.hidden(torch.zeros(1, 2, dtype=torch.int64, device=subject.device), torch.tensor([1]), attention)
    if missing := sorted(set(subject.geometry.attending) - found.keys()):
        raise HeadwiseError(f"layers {missing}: no module is fed the attention of all heads as it is; leave this out")
    return {layer: (module, given[layer]) for layer, module in found.items()}


@torch.no_grad()
def _matrix(module: torch.nn.Module, like: torch.Tensor, own: LayerGeometry, most: int) -> torch.Tensor:
    """[h, g, e, n] of what a linear module does to each channel that it is fed, of vectors such as `like`."""
    unit = torch.eye(len(like), dtype=like.dtype, device=like.device)
    turned = (module(unit) - module(torch.zeros_like(unit[:1]))).float().cpu()
    count = min(most, turned.shape[1])
    return turned[:, torch.arange(count) * turned.shape[1] // count].view(
        own.kv_heads, own.group, own.value_width, count
    )


@measure("outputs", cost=2)
def measured_outputs(material: Material, progress: Progress) -> Found:
    """Output projections of query heads (CriticalKV)."""
    return {}, {"critical_kv.output": output_projections(material.subject)}
