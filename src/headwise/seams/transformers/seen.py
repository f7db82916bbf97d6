"""Attention that is looked at: a forward in which every layer's queries and keys are shown to who looks, and computes
what it computes when nobody does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from headwise.errors import UnsupportedModel
from headwise.seams.transformers.attach import implementations, put_back

LOOKED = {"sdpa": "headwise_looks_at_sdpa", "eager": "headwise_looks_at_eager"}  # by the attention that is computed
ROWS = 256  # of a mask or of biases that are read at once


@dataclass(frozen=True, eq=False)
class Called:
    """A call of the attention function: by which module, queries [H, m, d], keys [h, n, d], their scale, the first and
    last key [m] that each query sees, and biases [H, m + n - 1] by distance, or None."""

    module: torch.nn.Module
    q: torch.Tensor
    k: torch.Tensor
    scale: float
    first: torch.Tensor
    last: torch.Tensor
    bias: torch.Tensor | None


_listens: ContextVar[Callable[[Called], None]] = ContextVar("listens")


@contextmanager
def looked_into(model: PreTrainedModel, listen: Callable[[Called], None]) -> Iterator[None]:
    """Within, `listen` is told of each attention of the model's forwards, of one row each."""
    before = implementations(model)
    own = before[""]
    if own not in LOOKED or not model._can_set_attn_implementation():
        raise UnsupportedModel(
            f"{type(model).__name__} attends by '{own}' and not through transformers' AttentionInterface, so that "
            "nothing is seen of it; load it with attn_implementation='sdpa', or look into another model"
        )
    for name, known in LOOKED.items():
        AttentionInterface.register(known, _SHOWN[name])
        AttentionMaskInterface.register(known, AttentionMaskInterface()[name])
    token = _listens.set(listen)
    try:
        model.set_attn_implementation({part: LOOKED[one] for part, one in before.items()})
        yield
    finally:
        put_back(model, before)
        _listens.reset(token)


def _by_sdpa(
    module: torch.nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, **how: Any
) -> Any:
    """transformers' attention function by sdpa, of which who listens is told."""
    causal = how.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    _tell(module, q, k, mask, bool(causal) and mask is None and q.shape[2] > 1, how)
    return AttentionInterface()["sdpa"](module, q, k, v, mask, **how)


def _by_eager(
    module: torch.nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, **how: Any
) -> Any:
    """The same by the function of the model's own file."""
    _tell(module, q, k, mask, False, how)
    return sys.modules[type(module).__module__].eager_attention_forward(module, q, k, v, mask, **how)


_SHOWN = {"sdpa": _by_sdpa, "eager": _by_eager}


def _tell(
    module: torch.nn.Module,
    q: torch.Tensor,
    k: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    how: dict[str, Any],
) -> None:
    name = type(module).__name__
    if len(q) != 1:
        raise UnsupportedModel(f"{name} attends over {len(q)} rows at once; one input is looked at, in one row")
    if wrong := [one for one in ("softcap", "s_aux") if how.get(one) is not None]:
        raise UnsupportedModel(f"{name} scores by {wrong[0]}, which is not looked at beside decoders")
    scale, (m, n) = how.get("scaling"), (q.shape[2], k.shape[2])
    first, last = _seen(name, mask, causal, m, n, q.device)
    bias = how.get("position_bias")
    _listens.get()(
        Called(
            module,
            q[0].detach(),
            k[0].detach(),
            q.shape[-1] ** -0.5 if scale is None else float(scale),
            first,
            last,
            None if bias is None or not bool(bias.any()) else _by_distance(name, bias[0].detach(), q.shape[1]),
        )
    )


def _seen(
    name: str, mask: torch.Tensor | None, causal: bool, m: int, n: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first and the last key that each of m queries sees of n, by a mask [1, 1, m, n], True or 0 where one is."""
    if mask is None:
        rows = torch.arange(m, device=device)
        return torch.zeros_like(rows), rows.clamp(max=n - 1) if causal else torch.full_like(rows, n - 1)
    found = []
    for block in mask[0].expand(-1, m, -1)[..., :n].split(ROWS, dim=1):
        seen = block if block.dtype == torch.bool else block > torch.finfo(block.dtype).min / 2
        first, last = seen.int().argmax(-1), n - 1 - seen.flip(-1).int().argmax(-1)
        added = block.dtype != torch.bool and bool(block[seen].any())
        if added or len(block) != 1 or not bool((seen.sum(-1) == last - first + 1).all()):
            raise UnsupportedModel(
                f"{name} masks other than by one run of keys for each query, which is not looked at; look into a model "
                "without padding, biases in masks, or gaps"
            )
        found.append((first[0], last[0]))
    firsts, lasts = zip(*found, strict=True)
    return torch.cat(firsts), torch.cat(lasts)


def _by_distance(name: str, bias: torch.Tensor, heads: int) -> torch.Tensor:
    """Biases [H, m, n] as [H, m + n - 1] by how far a key stands behind its query."""
    m, n = bias.shape[1:]
    by = torch.cat((bias[:, 1:, 0].flip(1), bias[:, 0]), dim=1)
    for start in range(0, m, ROWS):
        block = bias[:, start : start + ROWS]
        rows = torch.arange(start, start + block.shape[1], device=bias.device)
        places = torch.arange(n, device=bias.device) - rows[:, None] + m - 1
        if not torch.equal(by[:, places], block):
            raise UnsupportedModel(
                f"{name} adds biases that do not go by distance to its scores, which is not looked at; look into "
                "another model"
            )
    return by.expand(heads, -1).clone()
