"""Spans of Ltri-LLM, by hand and by brute force, and what a query retrieves of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from headwise.attention.view import Memory, View
from headwise.errors import HeadwiseError
from headwise.forms import Scoring
from headwise.methods.select.ltri import Ltri
from headwise.methods.triangles import spans
from tests.methods.views import changed, make_view, shown


def test_the_band_is_attention_by_distance() -> None:
    view = make_view(70, g=2, t=50)
    band, method = Ltri(longest=8).band(shown(Ltri(), view)), Ltri(longest=8)
    rows = view.observe(50).mean(1)
    for query, distance in ((0, 0), (3, 3), (20, 7), (49, 5)):
        torch.testing.assert_close(band[:, query, distance], rows[:, query, 20 + query - distance])
    assert not band[:, 3, 4:].any(), "keys of earlier chunks are left out"
    capped = method.band(replace(shown(method, view), scoring=Scoring(view.scale, 1.0)))
    torch.testing.assert_close(
        capped[:, 20, 7], replace(view, scoring=Scoring(view.scale, 1.0)).observe(50).mean(1)[:, 20, 33]
    )


def greedy(band: torch.Tensor, density: float) -> list[int]:
    """First tokens of spans, triangle by triangle."""
    t, longest = band.shape
    spans = [
        (sum(float(band[a, a - b]) - density for a in range(i, j + 1) for b in range(i, a + 1)), i, j)
        for i in range(t)
        for j in range(i, min(t, i + longest))
    ]
    cuts = {0}
    while spans:
        gain, i, j = max(spans)
        if gain <= 0:
            break
        cuts |= {i, j + 1}
        spans = [one for one in spans if one[2] < i or one[1] > j]
    edges = [*sorted(cuts - {t}), t]
    return [x for a, b in pairwise(edges) for x in range(a, b, longest)]


@pytest.mark.parametrize("density", [0.02, 0.11, 0.3])
def test_spans_are_the_best_triangles_that_do_not_overlap(density: float) -> None:
    method = Ltri(longest=10, density=density)
    for own in method.band(shown(method, make_view(40, seed=3))):
        assert spans(own, density).tolist() == greedy(own, density)


def planted(sizes: list[int]) -> View:
    """Keys and queries of segments, each in a direction of its own."""
    segment = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    view = make_view(len(segment))
    ways = 8 * torch.nn.functional.one_hot(segment, 16).float()
    return changed(view, keys=ways.expand(2, -1, -1), queries=ways.expand(2, 2, -1, -1))


def test_planted_segments_are_spans_and_a_query_retrieves_its_own() -> None:
    method, view = Ltri(12, sinks=0, recent=0, longest=32, density=0.08), planted([12] * 5)
    noted = method.learn(shown(method, view))
    assert [one.tolist() for one in noted["firsts"]] == [[0, 12, 24, 36, 48]] * 2
    notes = {(3, head, name): one for name, of in noted.items() for head, one in enumerate(of)}
    asked = changed(replace(view, phase="decode"), queries=view.queries[:, :, 15:16], memory=Memory(notes, 3, (0, 1)))
    assert [one.tolist() for one in method.select(shown(method, asked)).indices] == [list(range(12, 24))] * 2


def test_a_head_that_finds_something_votes_for_the_others() -> None:
    method, view = Ltri(longest=32, density=0.08), planted([12] * 5)
    notes = {
        (3, head, name): one for name, of in method.learn(shown(method, view)).items() for head, one in enumerate(of)
    }
    asked = view.queries[:, :, 15:16].clone()
    asked[1] = 0
    step = changed(replace(view, phase="decode"), queries=asked, memory=Memory(notes, 3, (0, 1)))
    alone, told = (Ltri(12, sinks=0, recent=0, votes=votes) for votes in (0.0, 0.5))
    assert set(alone.select(shown(alone, step)).indices[1].tolist()) != set(range(12, 24))
    assert told.select(shown(told, step)).indices[1].tolist() == list(range(12, 24))


def test_wrong_knobs_are_refused_with_the_value() -> None:
    with pytest.raises(HeadwiseError, match="longest must be greater than or equal to 1, got 0"):
        Ltri(longest=0)
