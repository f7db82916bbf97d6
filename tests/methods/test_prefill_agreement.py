"""What the methods have in common with the papers' released code, which was run on the same planted queries and keys.

Agreed then: MInference's columns and diagonals index for index, its blocks but for the two always read here; every
block of FlexPrefill's, with those beside a diagonal that its code leaves out and more lines, as lines are counted in
blocks here and in tokens there.
"""

from __future__ import annotations

import pytest
import torch

from headwise.attention.view import View
from headwise.methods.prefill.block_sparse import BlockSparse
from headwise.methods.prefill.flex_prefill import FlexPrefill
from headwise.methods.prefill.vertical_slash import VerticalSlashes
from tests.methods.test_prefill import planted
from tests.methods.views import make_view

N = 1024
VIEWS = [planted(N), make_view(N, g=1, h=1, d=64)]


def last_rows(view: View, rows: int) -> torch.Tensor:
    """Attention [rows, n] of the last queries."""
    scores = view.queries[0, 0, -rows:] @ view.keys[0].T * view.scale
    later = torch.arange(N) > torch.arange(N - rows, N)[:, None]
    return scores.masked_fill(later, -torch.inf).softmax(-1)


@pytest.mark.parametrize("view", VIEWS, ids=["planted", "random"])
@pytest.mark.parametrize(("verticals", "slashes"), [(60, 150), (300, 600)])
def test_columns_and_diagonals_are_those_of_minference(view: View, verticals: int, slashes: int) -> None:
    rows = last_rows(view, 64)
    columns = rows.sum(0)
    columns[:30] = torch.inf
    distance = torch.arange(N - 64, N)[:, None] - torch.arange(N)
    along = torch.zeros(N).index_add(0, distance.clamp(min=0).flatten(), rows.flatten())
    along[:100] = torch.inf
    where = VerticalSlashes(verticals, slashes).where(view)
    for line, chosen, count in ((columns, where.verticals[0], verticals), (along, where.slashes[0], slashes)):
        assert len(chosen) == count
        best = line.topk(count)  # by value, as ties may fall either way
        torch.testing.assert_close(line[chosen].sort().values, best.values.sort().values, atol=1e-6, rtol=0)
        surer = best.indices[best.values > best.values[-1] + 1e-5]
        assert set(surer.tolist()) <= set(chosen.tolist())


@pytest.mark.parametrize("view", VIEWS, ids=["planted", "random"])
def test_blocks_are_those_of_minference_but_for_the_first_and_the_own(view: View) -> None:
    means = [x.view(-1, 64, x.shape[-1]).mean(1) for x in (view.queries[0, 0], view.keys[0])]
    scores = (means[0] @ means[1].T).masked_fill(~torch.ones(16, 16, dtype=torch.bool).tril(), -torch.inf)
    best = [set(row.topk(6).indices.tolist()) & set(range(i + 1)) for i, row in enumerate(scores)]
    drawn = BlockSparse(6).where(view).dense(N, N)[0].view(16, 64, 16, 64).any(3).any(1)
    for i, row in enumerate(drawn):
        ours = set(row.nonzero()[:, 0].tolist())
        assert {0, i} <= ours
        assert len(best[i] - ours) <= len({0, i} - best[i])
        assert ours - {0, i} <= best[i]


@pytest.mark.parametrize("view", VIEWS, ids=["planted", "random"])
@pytest.mark.parametrize("mass", [0.9, 0.99])
def test_lines_of_flex_prefill_hold_those_of_its_code(view: View, mass: float) -> None:
    size, blocks = 64, N // 64
    rows = last_rows(view, size)
    columns = rows.mean(0)
    distance = (torch.arange(N - size, N)[:, None] - torch.arange(N)).clamp(min=0)
    along = torch.zeros(N).index_add(0, distance.flatten(), rows.flatten()) / size
    chosen = []
    for line in (columns, along):
        tokens = int((line.sort(descending=True).values.cumsum(0) < mass).sum()) + 1
        pooled = line.view(blocks, size).sum(1)
        pooled[0] = torch.inf
        chosen.append(set(pooled.topk(min(blocks, tokens // size + 1)).indices.tolist()))
    drawn = FlexPrefill(mass, tau=0.0, least=1, size=size).where(view).dense(N, N)[0]
    drawn = drawn.view(blocks, size, blocks, size).any(3).any(1)
    for i in range(blocks):
        theirs = {j for j in range(i + 1) if j in chosen[0] or i - j in chosen[1]}
        assert theirs <= set(drawn[i].nonzero()[:, 0].tolist())
