"""Rounding to few levels, one number at a time: what the slow truths of the codecs share."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch


def single(x: float) -> float:
    """`x` rounded to float32: each step of the arithmetic is, and a tie must fall to the same side."""
    return float(struct.unpack("f", struct.pack("f", x))[0])


def half(x: float) -> float:
    """`x` rounded to float16."""
    return float(struct.unpack("e", struct.pack("e", single(x)))[0])


def plain_symmetric(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors [h, n, d] in 255 levels around 0, one float16 scale each; element by element."""
    rows = []
    for vector in vectors.double().flatten(0, 1).tolist():
        scale = half(max(max(abs(x) for x in vector) / 127, 6.2e-5))
        rows.append([max(-127, min(127, round(single(x / scale)))) * scale for x in vector])
    return torch.tensor(rows).to(vectors.dtype).view_as(vectors)


def plain_asymmetric(group: list[float], bits: int) -> list[float]:
    """Numbers in 2^bits levels from a float16 minimum in steps of a float16 scale."""
    most, minimum = 2**bits - 1, half(min(group))
    scale = half(max(single(max(group) - minimum) / most, 6.2e-5))
    codes = [round(single(single(x - minimum) / scale)) for x in group]
    return [minimum + scale * max(0, min(most, code)) for code in codes]


def plain_blocks(
    keys: torch.Tensor, values: torch.Tensor, tokens: Sequence[int], size: int, bits: tuple[int, int]
) -> list[int]:
    """Round `tokens` of keys [n, d] and values [n, e] in place, in whole blocks of `size`; returns those left over.

    Keys by channel over a block, values by token in groups of `size` channels (KIVI, 2402.02750, section 3).
    """
    whole = len(tokens) // size * size
    for start in range(0, whole, size):
        block = list(tokens[start : start + size])
        for channel in range(keys.shape[1]):
            column = plain_asymmetric(keys[block, channel].double().tolist(), bits[0])
            keys[block, channel] = torch.tensor(column).to(keys.dtype)
        for token in block:
            row = values[token].double().tolist()
            parts = [row[i : i + size] for i in range(0, len(row), size)]
            rounded = [x for part in parts for x in plain_asymmetric(part, bits[1])]
            values[token] = torch.tensor(rounded).to(values.dtype)
    return list(tokens[whole:])


def plain_projected(vectors: torch.Tensor, rank: int, bits: int) -> torch.Tensor:
    """Vectors [n, width] by their `rank` strongest singular directions, with coefficients of `bits`; in float64."""
    _, sizes, directions = torch.linalg.svd(vectors.double(), full_matrices=False)
    basis = directions[:rank].T
    basis = basis * basis.gather(0, basis.abs().argmax(0)[None]).sign()
    basis = (basis * (sizes[: basis.shape[1]] / len(vectors) ** 0.5).sqrt()).to(vectors.dtype).double()
    coefficients = (vectors.double() @ basis / basis.square().sum(0)).to(vectors.dtype)
    if bits == 8:
        coefficients = plain_symmetric(coefficients[None])[0]
    if bits == 4:
        coefficients = torch.tensor([plain_asymmetric(row, 4) for row in coefficients.double().tolist()])
    return (coefficients.double() @ basis.T).to(vectors.dtype)
