"""How cross-attention reaches headwise: the keys that its layers hand to the attention function name who holds them."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from headwise.errors import UnsupportedModel
from headwise.forms import Scoring
from headwise.seams.transformers.probe import Asked


class Holder(Protocol):
    """What keeps an encoder's keys and values."""

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, live: torch.Tensor | None, asked: Asked
    ) -> torch.Tensor:
        """One layer's queries q [b, H, t, d] of the decoder over what is kept, or, the first time, over the encoder's
        k [b, h, n, d] and v [b, h, n, e], of which `live` [b, n] is False for padding: [b, H, t, e]."""


class CrossKeys(torch.Tensor):
    """Keys of an encoder's tokens: as they came when they are new, else a place holder of their size, which is NaN, so
    that a model that does anything with it but hand it on is found out."""

    holder: Holder
    layer: int
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


def cross_keys(keys: torch.Tensor, holder: Holder, layer: int) -> CrossKeys:
    """`keys` [b, h, n, d] that name their holder."""
    own = keys.as_subclass(CrossKeys)
    own.holder, own.layer = holder, layer
    return own


def attend_across(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: CrossKeys,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    how: dict[str, Any],
) -> tuple[torch.Tensor, None]:
    """transformers' attention function of a layer of cross-attention: query [b, H, t, d] -> out [b, t, H, e]."""
    bias = how.get("position_bias")
    if how.get("s_aux") is not None or (bias is not None and bool(bias.any())):
        raise UnsupportedModel(
            f"{type(module).__name__} adds sinks or position biases to its cross-attention, which headwise cannot "
            "honour; run it without headwise"
        )
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    asked = Asked(Scoring(scale, how.get("softcap")), None)
    keys = key.as_subclass(torch.Tensor)
    out = key.holder.attend(key.layer, query, keys, value, _live(module, mask, len(query)), asked)
    return out.transpose(1, 2).contiguous(), None


def _live(module: torch.nn.Module, mask: torch.Tensor | None, rows: int) -> torch.Tensor | None:
    """Which tokens of the encoder are no padding, [b, n], by a mask [b, 1, t, n], True or 0 where one is seen; None
    where all are."""
    if mask is None:
        return None
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    live = seen[:, 0, -1]
    if not bool((seen == live[:, None, None]).all()):
        raise UnsupportedModel(
            f"{type(module).__name__} shows the encoder's tokens to some of its queries alone, which headwise cannot "
            "honour; run it without headwise"
        )
    return None if bool(live.all()) else live.expand(rows, -1)
