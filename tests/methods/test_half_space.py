"""Half-space reporting: the ball tree, what is read by it, and ReLU attention over what it reports."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from headwise.attention import attend
from headwise.attention.view import Memory, View
from headwise.methods.ball_tree import LEAF, BallTree
from headwise.methods.select.hsr import HalfSpace
from headwise.methods.select.hsr_relu import HalfSpaceReLU
from tests.methods.views import changed, make_view, shown

BARE = {"sinks": 0, "recent": 0}


def clustered(n: int, d: int, clusters: int, seed: int = 0) -> torch.Tensor:
    """Keys [n, d] close to one of some far centres each."""
    random = torch.Generator().manual_seed(seed)
    centres = 4 * torch.randn(clusters, d, generator=random)
    return centres[torch.randint(clusters, (n,), generator=random)] + 0.1 * torch.randn(n, d, generator=random)


@pytest.mark.parametrize("n", [1, 5, LEAF, LEAF + 1, 100, 1000])
def test_every_key_lies_in_a_leaf_and_every_ball_holds_its_keys(n: int) -> None:
    keys = torch.randn(n, 8, generator=torch.Generator().manual_seed(n))
    tree = BallTree.of(keys)
    assert set(tree.leaves.flatten().tolist()) == set(range(n))
    assert tree.leaves.shape[1] <= LEAF and len(tree.radii) == 2 * len(tree.leaves) - 1
    level = tree.leaves
    for first in (2**depth - 1 for depth in reversed(range(len(tree.leaves).bit_length()))):
        balls = slice(first, first + len(level))
        assert ((keys[level] - tree.centres[balls, None]).norm(dim=-1) <= tree.radii[balls, None] + 1e-5).all()
        level = level.view(max(1, len(level) // 2), -1)


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
@pytest.mark.parametrize("keys", [clustered(1000, 16, 12), torch.randn(1000, 16)], ids=["clustered", "gaussian"])
def test_the_tree_leaves_out_no_key_that_reaches_the_threshold_and_is_sure_of_none_that_does_not(
    keys: torch.Tensor, share: float, queries: int
) -> None:
    asked = torch.randn(queries, 16, generator=torch.Generator().manual_seed(1))
    products = asked @ keys.T
    least = products.quantile(1 - share, dim=1)
    tree = BallTree.of(keys)
    sure, open_, _ = tree.reaching(asked, least)
    passing = set((products >= least[:, None]).any(0).nonzero()[:, 0].tolist())
    inside, undecided = set(tree.leaves[sure].flatten().tolist()), set(tree.leaves[open_].flatten().tolist())
    assert inside <= passing <= inside | undecided


def test_the_tree_spares_most_comparisons_where_keys_lie_in_clusters_and_none_where_they_are_gaussian() -> None:
    """Of 4,096 keys of 64 channels: measured 33 % compared, balls included, against 112 %. A sphere around
    Gaussian keys is as wide as all of them, so that the structure saves nothing there."""
    spent = []
    for keys in (clustered(4096, 64, 30), torch.randn(4096, 64, generator=torch.Generator().manual_seed(2))):
        query = torch.randn(1, 64, generator=torch.Generator().manual_seed(3))
        tree, least = BallTree.of(keys), (query @ keys.T).quantile(0.95, dim=1)
        _, open_, balls = tree.reaching(query, least)
        spent.append((balls + tree.leaves[open_].numel()) / len(keys))
    print(f"half space: share of keys and balls compared {spent}")
    assert spent[0] < 0.4 and spent[1] > 1


@pytest.mark.parametrize("n", [256, 4096, 65536])
def test_hsr_reports_at_most_twice_n_to_four_fifths_of_gaussian_keys(n: int) -> None:
    """The paper's threshold sqrt(0.4 ln n) is met by the budget n^(4/5), its tail bound; what is left out weighs
    little: the error of the output is at most twice the mass left out times the largest value."""
    view = make_view(n, g=1, t=1)
    keys = torch.randn(2, n, 16, generator=torch.Generator().manual_seed(n))
    view = changed(view, keys=keys)
    method = HalfSpace(int(n**0.8), **BARE)
    weights = view.observe(1)[:, 0, 0]
    for head, chosen in enumerate(method.select(view).indices):
        assert 0.5 * n**0.8 <= len(chosen) <= 2 * n**0.8
        kept = weights[head, chosen]
        out = (kept / kept.sum()) @ view.values[head, chosen]
        error = (out - weights[head] @ view.values[head]).abs().max()
        assert float(error) <= 2 * (1 - float(kept.sum())) * float(view.values[head].abs().max()) + 1e-5
    threshold = math.sqrt(0.4 * math.log(n))
    queries = view.queries[:, 0, 0] / view.queries[:, 0, 0].norm(dim=-1, keepdim=True)
    passing = (torch.einsum("hd,hnd->hn", queries, keys) >= threshold).sum(1)
    assert int(passing.max()) <= 2 * n**0.8


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_relu_attention_over_what_is_reported_is_relu_attention_over_everything(power: float) -> None:
    view = make_view(400, t=1)
    method = HalfSpaceReLU(0.2, power=power)
    least = method.least(view, method.told(view)).view(2, 2, 1, 1)
    scores = torch.einsum("hgtd,hnd->hgtn", view.queries.double(), view.keys.double())
    weights = ((scores - least) * view.scale).clamp(min=0) ** power
    truth = weights / weights.sum(-1, keepdim=True) @ view.values[:, None].double()
    where = method.select(shown(method, view))
    assert max(len(one) for one in where.tokens.indices) < 200
    out = attend(view.queries, view.keys, view.values, where, view.scoring).out
    torch.testing.assert_close(out.double(), truth, atol=1e-6, rtol=1e-5)


def test_a_query_that_no_key_reaches_reads_nothing() -> None:
    view = make_view(100, t=1, g=1)
    method = HalfSpaceReLU(0.01)
    keys = torch.ones_like(view.keys) + 1e-3 * torch.arange(100)[:, None] / 100
    view = changed(view, keys=keys)
    out = attend(view.queries, view.keys, view.values, method.select(shown(method, view)), view.scoring).out
    assert bool((out == 0).all())


def test_a_tree_serves_until_a_quarter_as_many_tokens_came_since() -> None:
    method, text = HalfSpace(0.2, **BARE), make_view(1000)

    def at(seen: int, notes: dict[tuple[int, int, str], torch.Tensor]) -> View:
        own = {name: text.granted[name][:, :seen] for name in ("keys", "values")}
        asked = {"queries": text.queries[:, :, seen - 1 : seen], "query_positions": torch.tensor([seen - 1])}
        view = replace(text, seen=seen, phase="decode", positions=text.positions[:, :seen], granted={})
        return changed(view, **own, **asked, memory=Memory(notes, 3, (0, 1)))

    noted = method.remember(at(600, {}))
    notes = {(3, head, name): one for name, of in noted.items() for head, one in enumerate(of)}
    assert method.remember(at(750, notes)) == {}
    assert method.remember(at(751, notes))
    view = at(750, notes)
    assert [one.tolist() for one in method.select(view).indices] == [one.tolist() for one in method.plain(view).indices]
