"""MMInference's patterns at the boundaries of modalities: text and images, in one prompt, attend differently."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.methods.modality import Boundary
from headwise.registry import Card, register

PAPER = (
    "MMInference: Accelerating Pre-filling for Long-Context VLMs via Modality-Aware Permutation Sparse Attention, "
    "arXiv 2504.16083, section 3.2"
)
BLOCKWISE = (
    "whole blocks of keys as columns and diagonals, found and read where they lie, where the paper takes single ones "
    "and moves the tokens of a modality side by side; a block of queries of two modalities reads what both need; the "
    "last queries of a modality may lie in several of its spans; one choice per KV head"
)
UNMARKED = "nothing is dropped, but pairs off the chosen columns and diagonals are not read. Without marks, or beside "


@register("prefill", "q_boundary")
@dataclass(frozen=True)
class QBoundary(Boundary):
    """One pattern for the queries of each modality, over all keys."""

    card = Card(
        title="MMInference: Q-boundary head",
        paper=PAPER,
        systems=(243,),
        phase="prefill",
        query_aware=True,
        chunking="approximate",
        forgets=UNMARKED + "them, tokens are text: one pattern for all",
        deviations=BLOCKWISE,
    )

    def of_keys(self, kinds: torch.Tensor) -> torch.Tensor:
        """One group."""
        return torch.zeros_like(kinds)


@register("prefill", "boundary_2d")
@dataclass(frozen=True)
class Boundary2D(Boundary):
    """One pattern for each modality of queries and modality of keys, so that none crowds out another."""

    card = Card(
        title="MMInference: 2D-boundary head",
        paper=PAPER,
        systems=(243,),
        phase="prefill",
        query_aware=True,
        chunking="approximate",
        forgets=UNMARKED + "them, tokens are text: one pattern for all",
        deviations=BLOCKWISE + "; columns and diagonals for every pair, where the paper seeks a pattern of its own for "
        "some; the released code has no such head to compare with",
    )

    def of_keys(self, kinds: torch.Tensor) -> torch.Tensor:
        """A group for each modality."""
        return kinds
