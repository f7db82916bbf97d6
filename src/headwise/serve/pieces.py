"""Where a prompt is cut for reading: at multiples of a piece from its start on, whatever comes after, so that two
prompts that begin alike are read alike as long as they do."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from headwise.seams.transformers.session_door import DECODE_TOKENS


def cuts(tokens: int, piece: int | None, start: int = 0) -> list[int]:
    """Where a prompt of `tokens` that was read up to `start`, a multiple of `piece`, is cut; its end comes last.

    Each piece is of `piece` tokens, but for the last, which takes in a rest so short that it would count as decoding.
    None: one piece.
    """
    if piece is None:
        return [tokens]
    return [*range(start + piece, tokens - DECODE_TOKENS, piece), tokens]


def cut(ids: Sequence[int], piece: int | None, start: int = 0) -> list[torch.Tensor]:
    """The tokens of a prompt from `start` on, in pieces [1, t]."""
    ends = cuts(len(ids), piece, start)
    return [torch.tensor([ids[a:b]]) for a, b in zip([start, *ends[:-1]], ends, strict=True)]
