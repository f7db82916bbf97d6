"""Head Pursuit: what a head writes, as a sum of few rows of the output matrix (arXiv 2510.21518)."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Pursued:
    """atoms: rows of the dictionary, in the order in which they were chosen. explained: the share of the samples'
    squares that the atoms so far account for, [atoms]."""

    atoms: list[int]
    explained: list[float]


def pursued(samples: torch.Tensor, dictionary: torch.Tensor, atoms: int) -> Pursued:
    """Simultaneous orthogonal matching pursuit of `samples [n, d]` over the rows of `dictionary [v, d]`.

    The next atom is the row of the largest product with what is left, as it is and not of unit length, so that the
    first atom of one sample is the token of its highest logit; all samples are then fitted anew by the atoms so far.
    """
    left = samples
    chosen: list[int] = []
    explained: list[float] = []
    total = samples.square().sum()
    for _ in range(min(atoms, len(dictionary))):
        products = (dictionary @ left.T).clamp(min=0).sum(-1)  # speaks for a token; against it does not count
        products[chosen] = -torch.inf
        chosen.append(int(products.argmax()))
        basis = torch.linalg.qr(dictionary[chosen].T).Q
        left = samples - (samples @ basis) @ basis.T
        explained.append(float(1 - left.square().sum() / total))
    return Pursued(chosen, explained)
