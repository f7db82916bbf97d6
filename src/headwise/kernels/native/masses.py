"""Which native kernel tells what scores say: that of a few new tokens, or that of prompts."""

from __future__ import annotations

import torch
from torch import Tensor

from headwise.forms import Causal, Codes, Scoring, Where
from headwise.kernels.native.byproducts import Scores
from headwise.kernels.native.estimates import Estimates
from headwise.kernels.native.prefill import BLOCK
from headwise.kernels.native.weights import Weights, few
from headwise.kernels.reference.scores import wide


def _kernel(q: Tensor, k: Tensor, where: Where, scoring: Scoring) -> Weights | Scores:
    return (Weights if few(q, where) else Scores)(q, k, where, scoring)


def refuse_column_mass(
    q: Tensor, k: Tensor, where: Where, scoring: Scoring, first: int, lse: Tensor | None
) -> list[str]:
    """Why the mass that keys got is not counted here; empty if it is."""
    if first:
        return [f"{type(where).__name__} counts queries from the first on, which cannot be left out"]
    return _kernel(q, k, where, scoring).refuse()


def column_mass(q: Tensor, k: Tensor, where: Where, scoring: Scoring, first: int, lse: Tensor | None) -> Tensor:
    """See `headwise.kernels.ops`."""
    return _kernel(q, k, where, scoring).column_mass(lse)


def refuse_scores(q: Tensor, k: Tensor, where: Where, scoring: Scoring) -> list[str]:
    """Why the scores of these queries are not read here; empty if they are."""
    return Scores(q, k, where, scoring).refuse()


def column_peaks(q: Tensor, k: Tensor, where: Where, scoring: Scoring) -> Tensor:
    """See `headwise.kernels.ops`."""
    return Scores(q, k, where, scoring).column_peaks()


def refuse_group_mass(q: Tensor, k: Tensor, scoring: Scoring) -> list[str]:
    """Why the mass by query is not counted here; empty if it is."""
    return Weights(q, k, Causal(), scoring).refuse()


def group_mass(q: Tensor, k: Tensor, scoring: Scoring) -> Tensor:
    """See `headwise.kernels.ops`."""
    return Weights(q, k, Causal(), scoring).by_query()


def row_lse(q: Tensor, k: Tensor, where: Where, scoring: Scoring) -> Tensor:
    """See `headwise.kernels.ops`."""
    return Scores(q, k, where, scoring).rows()[0]


def row_entropy(q: Tensor, k: Tensor, where: Where, scoring: Scoring) -> Tensor:
    """See `headwise.kernels.ops`."""
    return Scores(q, k, where, scoring).rows()[1]


def refuse_block_maxima(q: Tensor, k: Tensor, scoring: Scoring, block: int, below: Tensor | None) -> list[str]:
    """Why the maxima of blocks are not found here; empty if they are."""
    if block % BLOCK:
        return [f"no native maxima in blocks of {block}: multiples of {BLOCK} have them"]
    if below is not None and scoring.softcap is not None:
        return [f"softcap={scoring.softcap}: no native maxima of capped scores less a number of each query"]
    first = None if below is None else below[:, :, :1]  # one pair tells of all; nothing whole is copied to ask
    return Scores(*_lowered(q[:, :, :1], k[:, :1], scoring, first)).refuse()


def block_maxima(q: Tensor, k: Tensor, scoring: Scoring, block: int, below: Tensor | None) -> Tensor:
    """See `headwise.kernels.ops`."""
    return Scores(*_lowered(q, k, scoring, below)).block_maxima(block)


def _lowered(q: Tensor, k: Tensor, scoring: Scoring, below: Tensor | None) -> tuple[Tensor, Tensor, Causal, Scoring]:
    """What to score so that `below [h, g, t]` is taken off: one channel more, as q . k * scale - below is a product
    too."""
    if below is None:
        return q, k, Causal(), scoring
    q, k = wide(q), wide(k)  # before the scale, which would be rounded with it
    q, k = torch.cat((q * scoring.scale, -below[..., None]), -1), torch.cat((k, torch.ones_like(k[..., :1])), -1)
    q, k = (torch.nn.functional.pad(x, (0, -x.shape[-1] % BLOCK)) for x in (q, k))
    return q, k, Causal(), Scoring(1.0)


def refuse_estimated_maxima(q: Tensor, k: Codes, scoring: Scoring, block: int, below: Tensor) -> list[str]:
    """Why estimated scores are not searched here; empty if they are."""
    return Estimates(q, k, scoring).refuse()


def estimated_maxima(q: Tensor, k: Codes, scoring: Scoring, block: int, below: Tensor) -> Tensor:
    """See `headwise.kernels.ops`."""
    return Estimates(q, k, scoring).block_maxima(block, below)
