"""What of a model a plan governs, told before any weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from headwise.cost.meta_model import MetaModel
from headwise.geometry import Geometry, LayerGeometry
from headwise.shapes import format_bytes

TOKENS = 32_768  # of the sequence whose bytes are told, where the model has as many positions


def governed(meta: MetaModel) -> dict[str, Any]:
    """The layers of a model by sort, and the bytes of one long sequence, as plain JSON data.

    States are counted in the model's own element type; some models hold them in float32.
    """
    geometry, dtype = meta.geometry, meta.model.dtype
    tokens = min(TOKENS, geometry.max_positions)
    states = geometry.state_bytes(dtype)
    held = geometry.dense_bytes(tokens, dtype) - states
    return {
        "class": type(meta.model).__name__,
        "dtype": str(dtype).removeprefix("torch."),
        "layers": len(geometry.layers),
        "governed": len(geometry.attending),
        "sorts": [{"layers": layers, "is": said} for said, layers in _sorts(geometry)],
        "tokens": tokens,
        "key_value_bytes": held,
        "state_bytes": states,
        "governed_share": held / (held + states),
        "by_itself": meta.by_itself,
    }


def _sorts(geometry: Geometry) -> Iterator[tuple[str, list[int]]]:
    by_sort: dict[LayerGeometry, list[int]] = {}
    for number, layer in enumerate(geometry.layers):
        by_sort.setdefault(layer, []).append(number)
    for layer, layers in by_sort.items():
        yield _said(layer), layers


def _said(layer: LayerGeometry) -> str:
    if layer.attends and layer.state:
        return f"{_said(replace(layer, state=0))}; beside it a state of {layer.state} numbers, passed on as it is"
    if layer.attends:
        held = f"{layer.kv_heads} KV heads, keys {layer.key_width} and values {layer.value_width} wide"
        if layer.kind == "latent":
            turned = layer.key_width - layer.value_width
            held = f"one latent of {layer.value_width} numbers for all heads, beside a key of {turned}"
        reach = "every token" if layer.window is None else f"a window of {layer.window} tokens"
        return f"governed: attention to {reach}, {held}"
    if layer.reads is not None:
        return f"attention over what layer {layer.reads} keeps, as its plan has it; nothing of its own is kept"
    return f"a state of {layer.state} numbers, passed on as it is" if layer.state else "nothing is kept"


def governed_lines(found: dict[str, Any]) -> list[str]:
    """What `governed` found as lines for people."""
    lines = [f"{found['class']}: a plan governs {found['governed']} of {found['layers']} layers"]
    if found["by_itself"] is not None:
        lines[0] += " in what form they lie, and nothing else"
        lines.append(f"  {found['by_itself']}: it attends by itself, so that no eviction or selection is followed")
    for sort in found["sorts"]:
        shown = ", ".join(map(str, sort["layers"][:8])) + (", ..." if len(sort["layers"]) > 8 else "")
        lines.append(f"  {len(sort['layers']):3} of them ({shown}): {sort['is']}")
    lines.append(
        f"a sequence of {found['tokens']} tokens in {found['dtype']}: {format_bytes(found['key_value_bytes'])} of keys "
        f"and values, {found['governed_share']:.1%} of what its cache holds; "
        f"{format_bytes(found['state_bytes'])} of states"
    )
    lines.append("that it computes the same under headwise is checked when a cache is made for it, with its weights")
    return lines
