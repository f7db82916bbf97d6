"""What a vision-language model's image encoder shows: its attention, its features, and both with the attention altered.

Written for encoders whose layers have `self_attn` with `q_proj`, `k_proj`, `v_proj` and `out_proj` (CLIP, SigLIP), and
models that give image features by `get_image_features`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from headwise.errors import UnsupportedModel

Alter = Callable[[Tensor], Tensor]  # weights [b, H, n, n] -> weights of the same shape


def encoder_layers(model: Any) -> Sequence[torch.nn.Module]:
    """The layers of the image encoder, the first first."""
    tower = getattr(getattr(model, "model", model), "vision_tower", None)
    found = [] if tower is None else [one for name, one in tower.named_modules() if name.endswith("encoder.layers")]
    if not found or not hasattr(found[0][0], "self_attn"):
        raise UnsupportedModel(
            f"{type(model).__name__} has no image encoder of layers with self_attn, such as CLIP's; give a model of "
            "Llava's kind"
        )
    return list(found[0])


def image_features(model: Any, pixels: Tensor) -> Tensor:
    """What the decoder is given of pictures [b, 3, height, width]: [b, tokens, width]."""
    with torch.no_grad():
        found = model.get_image_features(pixel_values=pixels)
    own = found if isinstance(found, list | tuple) else getattr(found, "pooler_output", found)
    return own if isinstance(own, Tensor) else torch.stack(list(own))


def weights_of(attention: torch.nn.Module, states: Tensor) -> Tensor:
    """The weights [b, H, n, n] of an encoder layer's attention over its input states [b, n, width]."""
    heads: int = attention.num_heads  # type: ignore[assignment]
    q, k = (_split(project(states), heads) for project in (attention.q_proj, attention.k_proj))  # type: ignore[operator]
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def encoder_attention(model: Any, pixels: Tensor) -> list[Tensor]:
    """By encoder layer, the attention weights [b, H, n, n] over pictures [b, 3, height, width]."""
    return _noted(model, pixels, weights_of)


def encoder_keys(model: Any, pixels: Tensor) -> list[Tensor]:
    """By encoder layer, the keys [b, n, width] of all heads side by side."""
    return _noted(model, pixels, lambda attention, states: attention.k_proj(states))  # type: ignore[operator]


def _noted(model: Any, pixels: Tensor, seen: Callable[[torch.nn.Module, Tensor], Tensor]) -> list[Tensor]:
    """What `seen` makes of each encoder layer's attention and its input states."""
    found: list[Tensor] = []

    def note(module: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.append(seen(module, given[0] if given else named["hidden_states"]))

    handles = [
        layer.self_attn.register_forward_pre_hook(note, with_kwargs=True)  # type: ignore[union-attr]
        for layer in encoder_layers(model)
    ]
    try:
        image_features(model, pixels)
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextmanager
def altered(model: Any, alter: Alter) -> Iterator[None]:
    """Within, every layer of the image encoder attends by the weights that `alter` makes of its own."""

    def instead(module: Any, given: tuple[Any, ...], named: dict[str, Any], out: Any) -> Any:
        states = given[0] if given else named["hidden_states"]
        read = alter(weights_of(module, states)) @ _split(module.v_proj(states), module.num_heads)
        made = module.out_proj(read.transpose(1, 2).flatten(2))
        return (made, *out[1:]) if isinstance(out, tuple) else made

    handles = [
        layer.self_attn.register_forward_hook(instead, with_kwargs=True)  # type: ignore[union-attr]
        for layer in encoder_layers(model)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
