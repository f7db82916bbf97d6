"""Calling a model with a cache: one place that knows by which name it takes one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch


def cache_argument(kind: type[torch.nn.Module]) -> str:
    """The name under which models of a class take a cache, in a forward and in `generate`: `cache` in the newest
    transformers, where `past_key_values` warns, and `past_key_values` before."""
    return _cache_argument(kind.forward)


@functools.cache
def _cache_argument(function: Callable[..., Any]) -> str:
    return "cache" if "cache" in inspect.signature(function).parameters else "past_key_values"


def forward(model: torch.nn.Module, cache: Any, ids: torch.Tensor, **how: Any) -> Any:
    """What `model` makes of the next tokens `ids [b, t]` of `cache`. how: more of its forward's arguments."""
    return model(input_ids=ids, use_cache=True, **{cache_argument(type(model)): cache}, **how)
