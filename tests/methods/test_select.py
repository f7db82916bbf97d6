"""Hand-made cases of the selection methods."""

from __future__ import annotations

from headwise.attention.where import Causal
from headwise.methods.select.exact_topk import ExactTopK
from headwise.methods.select.quest import Quest
from tests.methods.views import changed, make_view, page_bounds


def test_quest_reads_the_page_of_the_matching_key_and_the_last_page() -> None:
    view = make_view(100, t=1)
    keys = 0.1 * view.keys
    keys[0, 37], keys[1, 70] = 5.0, -5.0
    queries = view.queries.clone()
    queries[0], queries[1] = 1.0, -1.0
    view = changed(view, keys=keys, queries=queries, bounds=page_bounds(keys, 16))
    chosen = Quest(32, sinks=0, recent=0).select(view).indices
    assert chosen[0].tolist() == [*range(32, 48), *range(96, 100)]
    assert chosen[1].tolist() == [*range(64, 80), *range(96, 100)]


def test_quest_bound_is_never_below_a_true_score() -> None:
    view = make_view(100, t=3)
    queries = view.queries.flatten(1, 2)
    bounds = queries.clamp(min=0) @ view.bounds.maximum.mT + queries.clamp(max=0) @ view.bounds.minimum.mT
    true = queries @ view.keys.mT
    assert (bounds.repeat_interleave(16, -1)[..., :100] >= true - 1e-5).all()


def test_quest_reads_everything_in_its_first_layers_and_at_full_budget() -> None:
    view = make_view(100, t=1)
    assert isinstance(Quest(16, skip_layers=4).select(view), Causal)
    assert [len(one) for one in Quest(1.0).select(view).indices] == [100, 100]


def test_exact_topk_reads_the_largest_weights() -> None:
    view = make_view(100, t=1)
    chosen = ExactTopK(10, sinks=0, recent=0).select(view).indices
    weights = view.observe(1).mean((1, 2))
    for head in range(2):
        assert set(chosen[head].tolist()) == set(weights[head].topk(10).indices.tolist())


def test_exact_topk_keeps_more_mass_than_quest() -> None:
    view = make_view(257, t=1)
    weights = view.observe(1).mean((1, 2))

    def mass(method: ExactTopK | Quest) -> float:
        return sum(float(weights[head, one].sum()) for head, one in enumerate(method.select(view).indices))

    assert mass(ExactTopK(64)) > mass(Quest(64, sinks=0, recent=0)) > 1.2 * 2 * 64 / 257
