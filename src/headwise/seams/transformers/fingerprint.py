"""Which model this is: what plans and calibrations are bound to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import torch


def fingerprint(config: dict[str, Any], weights: Iterable[tuple[str, torch.Tensor]]) -> str:
    """A short hash of a model's configuration and of samples of its weights: equal for equal models, on any device."""
    facts = dict(config)
    for volatile in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache"):
        facts.pop(volatile, None)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    named = ((name, weight) for name, packed in weights for weight in _parts(packed.detach()))
    for name, weight in sorted(named, key=lambda one: one[0]):
        sample = weight.flatten()[:: max(1, weight.numel() // 16)][:16]
        digest.update(name.encode() + sample.to("cpu", torch.float32).to(torch.bfloat16).float().numpy().tobytes())
    return digest.hexdigest()[:16]


def _parts(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """The plain tensors that a weight is made of: itself, or those inside one of a quantiser's own kind (torchao's)."""
    if type(weight) is torch.Tensor or not hasattr(weight, "__tensor_flatten__"):
        yield weight
        return
    names, _ = weight.__tensor_flatten__()
    for name in names:
        yield from _parts(getattr(weight, name))
