"""What the patterns of a host's heads are drawn from: all of them in tiles, and some pair by pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from headwise.lens.closeup import packed
from headwise.lens.host_look import HostLook
from headwise.lens.hosts import HostScene, looked_into
from headwise.lens.look import tile_size

MOST_BYTES = 16 << 20  # of queries and keys, up to which every head is drawn pair by pair
Named = tuple[str, int, int]  # stack, layer, head


def host_patterns(scene: HostScene, near: Sequence[Named]) -> dict[str, Any]:
    """By stack, tiles of all heads as in `closeup.Patterns`, and by "layer.head" what blocks of a pattern are made
    of: of all heads where that is small, else of those that are named, or of the first of each layer."""
    sizes = looked_into(scene, lambda look: 2 * (look.attention.q.numel() + look.attention.k.numel()))
    small = sum(sum(layers.values()) for layers in sizes.values()) <= MOST_BYTES

    def drawn(look: HostLook) -> dict[str, Any]:
        one = look.attention
        tiles = (look.tiles.clamp(min=0, max=1).sqrt() * 255).round().to(torch.uint8)
        own = [head for name, layer, head in near if (name, layer) == (one.stack.name, one.layer)]
        heads = range(len(one.q)) if small else own or ([] if near else [0])
        return {"tiles": packed(tiles), "heads": {f"{one.layer}.{head}": _pattern(look, head) for head in heads}}

    found = looked_into(scene, drawn)
    return {
        stack: {
            "tiles": [layers[layer]["tiles"] for layer in sorted(layers)],
            "heads": {name: own for one in layers.values() for name, own in one["heads"].items()},
        }
        for stack, layers in found.items()
    } | {"tile": {name: tile_size(one.tokens) for name, one in scene.readings.items()}}


def _pattern(look: HostLook, head: int) -> dict[str, Any]:
    one = look.attention
    return {
        "q": packed(one.q[head].half()),
        "k": packed(one.k[head // (len(one.q) // len(one.k))].half()),
        "lse": packed(look.lse[head].float()),
        "scale": one.scale,
        "first": one.first.tolist(),
        "last": one.last.tolist(),
        "bias": None if one.bias is None else packed(one.bias[head].float()),
    }
