"""The inputs on which flash-linear-attention's naive operators were asked, and its answers (`data/operators.json`).

Answers were made with its commit bc3b101 (`fla/ops/*/naive.py`), in float32 on a CPU: what head 1 of row 1 gets at
the tokens of SHOWN.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

ROWS, HEADS, TOKENS, DIM = 2, 2, 70, 8
SHOWN = (0, 1, 17, 40, 69)
ANSWERS = Path(__file__).parent / "data" / "operators.json"


def wave(number: int, *shape: int) -> Tensor:
    """Numbers between -1 and 1 that look like noise and are the same everywhere."""
    count = torch.Size(shape).numel()
    places = torch.arange(count, dtype=torch.float64)
    return (places * (1.7 + 0.31 * number) + (0.013 * places) ** 2 + number).sin().view(shape).float()


def unit(x: Tensor) -> Tensor:
    """`x` of length 1 over its last dimension."""
    return x / x.norm(dim=-1, keepdim=True)


def given() -> dict[str, Tensor]:
    """By name: q, k, v [rows, heads, tokens, dim], k and q of length 1 as well, decays and beta."""
    size = (ROWS, HEADS, TOKENS, DIM)
    q, k, v = (wave(n, *size) for n in range(3))
    return {
        "q": q, "k": k, "v": v, "unit_q": unit(q), "unit_k": unit(k),
        "decay": -0.2 * (1 + wave(3, *size[:3], 1)), "decays": -0.4 * (1 + wave(4, *size)),
        "beta": 0.5 + 0.5 * wave(5, *size[:3]),
    }  # fmt: skip


def answers() -> dict[str, Tensor]:
    """By operator: [tokens of SHOWN, dim]."""
    return {name: torch.tensor(one) for name, one in json.loads(ANSWERS.read_text()).items()}
