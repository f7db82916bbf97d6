"""Where a prompt is cut for reading: at multiples of a piece from its start on, whatever comes after, so that two
prompts that begin alike are read alike as long as they do."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from headwise.seams.transformers.session_door import DECODE_TOKENS


def cuts(tokens: int, piece: int | None, start: int = 0, joined: int = 1) -> list[int]:
    """Where a prompt of `tokens` that was read up to `start`, a multiple of `piece`, is cut; its end comes last.

    Each piece is of `piece` tokens, but for the last, which takes in a rest so short that it would count as decoding.
    None: one piece. joined: so many pieces, counted from the prompt's start, are read as one where they end before the
    last cut, up to which others may share what was read.
    """
    if piece is None:
        return [tokens]
    ends, size = range(start + piece, tokens - DECODE_TOKENS, piece), joined * piece
    apart = ends[-1] // size * size if ends else 0  # where pieces begin that do not fill a joined one
    return [*(end for end in ends if end >= apart or not end % size), tokens]


def cut(ids: Sequence[int], piece: int | None, start: int = 0, joined: int = 1) -> list[torch.Tensor]:
    """The tokens of a prompt from `start` on, in pieces [1, t]; see `cuts`."""
    ends = cuts(len(ids), piece, start, joined)
    return [torch.tensor([ids[a:b]]) for a, b in zip([start, *ends[:-1]], ends, strict=True)]
