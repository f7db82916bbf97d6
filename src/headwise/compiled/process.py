"""A process that keeps one model until it ends, as `headwise run`, `chat` and `serve` do."""

from __future__ import annotations

import gc

from headwise.compiled.fast import Fast, fast
from headwise.seams.transformers.cache import PreTrainedModel


def fast_process(model: PreTrainedModel, weights: str | None = None) -> Fast:
    """`fast`, and what is loaded by now is never looked through for garbage again: torch, transformers and a model
    hold about 400,000 objects, and a pass over them stops a token for a quarter of a second."""
    done = fast(model, weights)
    gc.collect()
    gc.freeze()
    return done
