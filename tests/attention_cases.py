"""Random inputs and forms for the tests of attention, and the brute-force definition of each form."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from headwise.attention import attend, attend_pages
from headwise.forms import (
    Attended,
    Blocks,
    Causal,
    Full,
    Paged,
    Scoring,
    Tokens,
    Union,
    Until,
    VerticalSlash,
    Where,
    Window,
)
from headwise.kernels.dispatch import only
from headwise.kernels.native.library import EMULATED, FOLDER

NATIVE = Path(__file__).parents[1] / "native"


def attend_on(backend: str, q: Tensor, k: Tensor, v: Tensor, where: Where, scoring: Scoring) -> Attended:
    """`attend` by one backend alone."""
    with only(backend):
        return attend(q, k, v, where, scoring)


def attend_pages_on(backend: str | None, q: Tensor, paged: Paged, where: Where, scoring: Scoring) -> Attended:
    """`attend_pages` by one backend alone, which reads pages in place or gets them decoded; by any where None."""
    with nullcontext() if backend is None else only(backend, "decoded"):
        return attend_pages(q, paged, where, scoring)


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny problems: a second thread only waits, for milliseconds on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def build_emulated() -> None:
    """Compile the level whose tiles are plain C++, where a source is newer: no user needs it, so no install has it."""
    library = FOLDER / f"{EMULATED}.so"
    if not library.exists() or library.stat().st_mtime < max(path.stat().st_mtime for path in NATIVE.glob("*.?pp")):
        build = [sys.executable, str(NATIVE / "build.py"), "--levels", EMULATED, "--out", str(FOLDER)]
        subprocess.run(build, check=True, capture_output=True)


def qkv(
    h: int, g: int, t: int, n: int, d: int = 8, e: int | None = None, dtype: torch.dtype = torch.float32, seed: int = 0
):
    """Random q [h, g, t, d], k [h, n, d], v [h, n, e]."""
    made = torch.Generator().manual_seed(seed + 7919 * n + t)
    e = d if e is None else e
    shapes = ((h, g, t, d), (h, n, d), (h, n, e))
    return tuple(torch.randn(shape, generator=made).to(dtype) for shape in shapes)


def ragged(h: int, n: int, seed: int = 0) -> list[Tensor]:
    """h ascending lists of different lengths below n; the first is empty when h > 1."""
    made = torch.Generator().manual_seed(seed)
    counts = [0 if head == 0 and h > 1 else 1 + (n - 1) * head // h for head in range(h)]
    return [torch.randperm(n, generator=made)[:count].sort().values for count in counts]


def forms(h: int, t: int, n: int, seed: int = 0) -> list[Where]:
    """One or more of every form, for h heads."""
    made = torch.Generator().manual_seed(seed)
    size = 5
    drawn = torch.rand(h, -(-t // size), -(-n // size), generator=made) < 0.4
    table = torch.stack([torch.randperm(n, generator=made)[: (n + 1) // 2].sort().values for _ in range(h)])
    listed = VerticalSlash(tuple(ragged(h, n, seed + 1)), tuple(ragged(h, n, seed + 2)))
    return [
        Full(),
        Causal(),
        Window(0),
        Window(3),
        Window(2, sinks=4),
        Window(2 * n, sinks=1),
        Blocks.from_map(size, drawn),
        Tokens(ragged(h, n, seed)),
        Tokens(table),
        listed,
        Until(torch.randint(-1, 2 * n, (h, n), generator=made)),
        Window(1) | Tokens(table),
        Union((listed, Blocks.from_map(size, drawn), Window(1, 1))),
    ]


def sees(where: Where, head: int, query: int, key: int, t: int, n: int) -> bool:
    """Whether the form shows `key` to `query`, straight from the form's definition."""
    if isinstance(where, Full):
        return True
    if isinstance(where, Union):
        return any(sees(part, head, query, key, t, n) for part in where.parts)
    position = n - t + query
    if key > position:
        return False
    if isinstance(where, Window):
        return position - key <= where.left or key < where.sinks
    if isinstance(where, Blocks):
        row = where.offsets[head, query // where.size : query // where.size + 2].tolist()
        return key // where.size in where.columns[row[0] : row[1]].tolist()
    if isinstance(where, Tokens):
        return key in where.indices[head].tolist()
    if isinstance(where, Until):
        return position <= int(where.last[head, key])
    if isinstance(where, VerticalSlash):
        return key in where.verticals[head].tolist() or position - key in where.slashes[head].tolist()
    return isinstance(where, Causal)


def drawn(where: Where, h: int, t: int, n: int) -> Tensor:
    """The form for h heads, pair by pair: bool [h, t, n]."""
    return torch.tensor([[[sees(where, i, q, k, t, n) for k in range(n)] for q in range(t)] for i in range(h)])


def exact(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float, softcap: float | None = None):
    """Textbook float64 attention for visible [h, t, n]: (out, lse, probabilities); 0, -inf, 0 in rows without keys."""
    s = torch.einsum("hgtd,hnd->hgtn", q.double(), k.double()) * scale
    s = s if softcap is None else softcap * torch.tanh(s / softcap)
    s = s.masked_fill(~visible[:, None], float("-inf"))
    p = s.softmax(-1).nan_to_num(0.0)
    return torch.einsum("hgtn,hne->hgte", p, v.double()), s.logsumexp(-1), p
