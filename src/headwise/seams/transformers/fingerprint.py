"""Which model this is: what plans and calibrations are bound to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch


def fingerprint(config: dict[str, Any], weights: Iterable[tuple[str, torch.Tensor]]) -> str:
    """A short hash of a model's configuration and of samples of its weights: equal for equal models, on any device."""
    facts = dict(config)
    for volatile in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache"):
        facts.pop(volatile, None)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, weight in sorted(weights):
        sample = weight.detach().flatten()[:: max(1, weight.numel() // 16)][:16]
        digest.update(name.encode() + sample.to("cpu", torch.float32).to(torch.bfloat16).float().numpy().tobytes())
    return digest.hexdigest()[:16]
