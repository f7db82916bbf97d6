"""Row 302's trained network: it cuts planted segments where they end, by keys alone, of documents it has not seen."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from headwise.attention import column_mass
from headwise.attention.view import View
from headwise.forms import Causal
from headwise.methods.chunks import SIDE, both_sides, changes, cut, foretold
from headwise.methods.prefill.dhsa import Dhsa
from headwise.methods.prefill.dhsa.measure import TAIL, Cuts, cut_loss, lesson, untrained
from headwise.observe import trained
from headwise.shapes import Rope
from tests.methods.views import changed, make_view, rope, shown

LONG = 1200


def planted(seed: int) -> tuple[View, list[int]]:
    """Segments of 9 to 59 tokens whose keys go one way each, attended to by turns little and much; and their ends."""
    random = torch.Generator().manual_seed(seed)
    view = make_view(LONG, h=1, seed=seed)
    ends = torch.randint(9, 60, (60,), generator=random).cumsum(0)
    segment = torch.searchsorted(ends, torch.arange(LONG), right=True).clamp(max=59)
    level = torch.where(torch.arange(60) % 2 == 0, 0.0, 2.0) + torch.rand(60, generator=random)
    keys = torch.randn(60, 16, generator=random)[segment] + 0.3 * torch.randn(LONG, 16, generator=random)
    keys[:, 0], queries = level[segment], torch.zeros_like(view.queries)
    queries[..., 0] = 4.0
    return changed(view, keys=keys[None], queries=queries), ends[ends < LONG - TAIL].tolist()


def shown_in_full(view: View) -> Cuts:
    """The lesson of a document that is read at once."""
    return lesson(view, column_mass(view.queries, view.keys, Causal(), view.scoring))


def f1(found: list[int], true: list[int], off: int) -> float:
    near = [[abs(one - other) <= off for other in found] for one in true]
    recall, precision = sum(map(any, near)) / len(true), sum(map(any, zip(*near, strict=True))) / len(found)
    return 2 * recall * precision / (recall + precision)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    lessons = [shown_in_full(planted(seed)[0]) for seed in range(6)]
    return trained(untrained(1, 67), lessons, cut_loss, steps=200, rate=1e-2)


def test_dhsa_302_foretells_where_planted_segments_end(weights: dict[str, torch.Tensor]) -> None:
    """Measured within 2 tokens: 1.00 and 0.98 with a least change of 1.5. With the paper's 1.1 all ends are found, but
    as many ripples of noise beside them: 0.74 and 0.67. Exactly on the token: 0.83 and 0.83."""
    for seed in (100, 101):
        view, ends = planted(seed)
        told = shown(Dhsa(), changed(view, calibration=weights))
        found = [one for one in Dhsa(ratio=1.5).starts(told)[0].nonzero()[1:, 0].tolist() if one < LONG - TAIL]
        loose = [one for one in Dhsa().starts(told)[0].nonzero()[1:, 0].tolist() if one < LONG - TAIL]
        print(
            f"row 302: F1 {f1(found, ends, 2):.3f}, exactly {f1(found, ends, 0):.3f}, at 1.1 {f1(loose, ends, 2):.3f}"
        )
        assert f1(found, ends, 2) >= 0.9
        assert float(cut_loss(full := shown_in_full(view), weights)) < 0.3 * float(cut_loss(full, untrained(1, 67)))


def test_the_network_sees_keys_alone_and_before_rotation(weights: dict[str, torch.Tensor]) -> None:
    view, _ = planted(7)
    other = changed(view, queries=torch.randn(view.queries.shape, generator=torch.Generator().manual_seed(1)))
    views = [shown(Dhsa(), changed(one, calibration=weights)) for one in (view, other)]
    assert torch.equal(Dhsa().starts(views[0]), Dhsa().starts(views[1]))
    turn: Rope = rope(16)
    turned = changed(view, rope=turn, keys=turn.rotate(view.keys, view.positions))
    torch.testing.assert_close(both_sides(turned), both_sides(view), atol=1e-3, rtol=1e-3)


def test_changes_are_the_larger_over_the_smaller_side() -> None:
    mass = torch.rand(1, 40, generator=torch.Generator().manual_seed(0)) + 0.1
    found = changes(mass)[0]
    for j in (1, 3, 20, 38, 39):
        before, after = float(mass[0, max(0, j - SIDE) : j].sum()), float(mass[0, j : j + SIDE].sum())
        assert float(found[j]) == pytest.approx(abs(math.log(before / after)), abs=1e-5)
    assert float(found[0]) == 0
    starts = cut(changes(mass), 0.5)[0].nonzero()[:, 0].tolist()
    assert starts[0] == 0
    assert all(b - a > SIDE for a, b in pairwise(starts[1:]))
    assert float(foretold(both_sides(make_view(30)), untrained(2, 67)).min()) >= 0
