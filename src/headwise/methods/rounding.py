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


def plain_balanced(vectors: torch.Tensor, met: torch.Tensor, bits: int, size: int) -> torch.Tensor:
    """Vectors [n, width] rounded in groups of `size` channels: less their mean, channels stretched by the fourth root
    of the energy that they are met by over their own, mixed by Hadamard's matrix in blocks, with signs. Four vectors
    more are taken to have come, which all channels share."""
    wide, few = vectors.double(), len(vectors) / (len(vectors) + 4)
    centre = wide.mean(0) * few
    means, floored = [], []
    for energy in ((wide - centre).square().mean(0), met.double()):
        means.append(energy.mean())
        floored.append(few * energy.clamp_min(1e-3 * energy.mean()) + (1 - few) * energy.mean())
    own, met = (one if mean > 0 else torch.ones_like(one) for one, mean in zip(floored, means, strict=True))
    stretch = (met / own).pow(0.25)
    stretch = stretch * (own.mean() / (own * stretch**2).mean()).sqrt()
    balanced = (vectors.float() - centre.float()) * stretch.float()
    width, span = vectors.shape[1], vectors.shape[1] & -vectors.shape[1]
    signs = [single(span**-0.5) * (-1) ** ((i % span) & (i % span) >> 1).bit_count() for i in range(width)]
    rows = [[single(x * sign) for x, sign in zip(plain_hadamard(row), signs, strict=True)] for row in balanced.tolist()]
    groups = [[row[i : i + size] for i in range(0, width, size)] for row in rows]
    codes = [[x for group in row for x in plain_asymmetric(group, bits)] for row in groups]
    rounded = [plain_hadamard([x * sign for x, sign in zip(row, signs, strict=True)]) for row in codes]
    return (torch.tensor(rounded) / stretch.float() + centre.float()).to(vectors.dtype)


def plain_hadamard(row: list[float]) -> list[float]:
    """Numbers times Hadamard's matrix of as many as a power of two divides their count by, block by block; each sum is
    rounded to float32."""
    span, half = len(row) & -len(row), 1
    while half < span:
        pairs = [(i, i + half) for i in range(len(row)) if not i & half]
        sums = {i: single(row[i] + row[j]) for i, j in pairs} | {j: single(row[i] - row[j]) for i, j in pairs}
        row, half = [sums[i] for i in range(len(row))], 2 * half
    return row


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
