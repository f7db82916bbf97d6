"""Hand-made cases of the selection methods."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from headwise.attention.view import Memory, View
from headwise.errors import HeadwiseError
from headwise.forms import Causal
from headwise.methods.select import Select
from headwise.methods.select.double_sparsity import DoubleSparsity
from headwise.methods.select.exact_topk import ExactTopK
from headwise.methods.select.extended_mind import ExtendedMind
from headwise.methods.select.hip_decode import HipDecode
from headwise.methods.select.loki import Loki
from headwise.methods.select.long_heads import LongHeads
from headwise.methods.select.magicpig import MagicPIG
from headwise.methods.select.qada import QAdA
from headwise.methods.select.quest import Quest
from headwise.methods.select.sparq import SparQ
from headwise.methods.select.tidal import TidalDecode
from headwise.methods.select.token_select import TokenSelect
from headwise.methods.select.top_p import TopP
from headwise.methods.tree import descend
from headwise.recipe import Recipe
from tests.contract.drive import Text, geometry, run
from tests.methods.views import changed, make_view, rope, shown

BARE = {"sinks": 0, "recent": 0}


def read(method: Select, view: View) -> list[set[int]]:
    """What each head reads."""
    where = method.select(shown(method, view))
    return [
        set(row.nonzero()[:, 0].tolist()) for row in where.dense(1, view.count).expand(len(view.heads), 1, -1)[:, 0]
    ]


def test_quest_reads_the_page_of_the_matching_key_and_the_last_page() -> None:
    view = make_view(100, t=1)
    keys = 0.1 * view.keys
    keys[0, 37], keys[1, 70] = 5.0, -5.0
    queries = view.queries.clone()
    queries[0], queries[1] = 1.0, -1.0
    quest = Quest(32, sinks=0, recent=0)
    chosen = quest.select(shown(quest, changed(view, keys=keys, queries=queries))).indices
    assert chosen[0].tolist() == [*range(32, 48), *range(96, 100)]
    assert chosen[1].tolist() == [*range(64, 80), *range(96, 100)]


def test_quest_bound_is_never_below_a_true_score() -> None:
    view = make_view(100, t=3)
    queries = view.queries.flatten(1, 2)
    low, high = shown(Quest(), view).summaries.unbind(2)
    bounds = queries.clamp(min=0) @ high.mT + queries.clamp(max=0) @ low.mT
    true = queries @ view.keys.mT
    assert (bounds.repeat_interleave(16, -1) >= true[..., :96] - 1e-5).all()


def test_quest_reads_everything_in_its_first_layers_and_at_full_budget() -> None:
    view = make_view(100, t=1)
    assert isinstance(Quest(16, skip_layers=4).select(view), Causal)
    assert [len(one) for one in read(Quest(1.0), view)] == [100, 100]


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
        return sum(float(weights[head, list(one)].sum()) for head, one in enumerate(read(method, view)))

    assert mass(ExactTopK(64)) > mass(Quest(64, sinks=0, recent=0)) > 1.2 * 2 * 64 / 257


@pytest.mark.parametrize("method", [Loki(20, channels=1.0, **BARE), SparQ(20, channels=1.0, **BARE)])
def test_all_channels_choose_what_exact_topk_chooses(method: Select) -> None:
    view = make_view(200, t=1)
    assert read(method, view) == read(ExactTopK(20, **BARE), view)


def test_double_sparsity_with_all_channels_is_exact_topk_and_takes_a_calibration() -> None:
    view = make_view(200, t=1)
    assert read(DoubleSparsity(20, channels=1.0, **BARE), view) == read(ExactTopK(20, **BARE), view)
    queries, strength = torch.zeros_like(view.queries), torch.zeros(2, 16)
    queries[..., 5], strength[:, 5] = 1.0, 1.0
    told = changed(view, queries=queries, calibration={"strength": strength})
    assert read(DoubleSparsity(20, **BARE), told) == read(ExactTopK(20, **BARE), told)
    method = DoubleSparsity(20, **BARE)
    assert read(method, told) == [set(one.tolist()) for one in method.plain(shown(method, told)).indices]
    strength = strength.roll(1, 1)
    misled = changed(told, calibration={"strength": strength})
    assert read(DoubleSparsity(20, **BARE), misled) != read(ExactTopK(20, **BARE), misled)


def test_loki_finds_the_plane_in_which_keys_vary() -> None:
    view = make_view(200, t=1)
    plane = torch.linalg.qr(torch.randn(2, 16, 2, generator=torch.Generator().manual_seed(1)))[0]
    keys = torch.randn(2, 200, 2, generator=torch.Generator().manual_seed(2)) @ plane.mT
    view = changed(view, keys=keys)
    assert read(Loki(20, channels=0.125, **BARE), view) == read(ExactTopK(20, **BARE), view)


def test_top_p_reads_more_where_attention_is_spread() -> None:
    view = make_view(200, t=1)
    queries = view.queries.clone()
    queries[0], queries[1] = 0.0, 4 * queries[1]
    view = changed(view, queries=queries)
    spread, sharp = read(TopP(mass=0.8, **BARE), view)
    assert len(spread) == 160
    assert len(sharp) < 40
    weights = view.observe(1).mean((1, 2))[1]
    assert float(weights[sorted(sharp)].sum()) >= 0.8
    assert float(weights[sorted(sharp)].sum() - weights[sorted(sharp)].min()) < 0.8


def test_token_select_lets_heads_vote_and_keeps_its_choice_while_queries_stay_alike() -> None:
    view = make_view(200, t=1)
    method = TokenSelect(20, **BARE)
    assert read(method, view)[0] == read(method, view)[1], "all heads read the same tokens"
    noted = method.remember(view)
    notes = {(3, head, name): one for name, of in noted.items() for head, one in enumerate(of)}
    later = changed(view, memory=Memory(notes, 3, (0, 1)))
    assert method.remember(later) == {}
    turned = changed(later, queries=-view.queries)
    assert method.remember(turned)
    assert read(method, turned)[0] == set(noted["chosen"][0].tolist())


def test_soft_votes_recall_more_of_each_heads_own_choice_than_raw_scores() -> None:
    """Raw scores let the head with the longest vectors decide alone."""
    view = make_view(400, t=1, h=4)
    keys = view.keys * torch.tensor([1.0, 1.0, 1.0, 30.0])[:, None, None]
    view = changed(replace(view), keys=keys)
    own = read(ExactTopK(40, **BARE), view)
    raw = torch.einsum("hgtd,hnd->n", view.queries, keys).topk(40).indices.tolist()
    recall = [sum(len(head & set(chosen)) for head in own) for chosen in (read(TokenSelect(40, **BARE), view)[0], raw)]
    assert recall[0] > recall[1]


def test_tidal_reads_in_later_layers_what_its_choosing_layer_chose() -> None:
    method = TidalDecode(20, skip_layers=2, again_layer=6, **BARE)
    view = make_view(200, t=1)
    chosen = {layer: method.remember(replace(view, layer=layer)) for layer in range(9)}
    assert [layer for layer in range(9) if chosen[layer]] == [2, 6]
    notes = {(2, head, "chosen"): torch.arange(5) for head in range(2)}
    notes |= {(6, head, "chosen"): torch.arange(5, 9) for head in range(2)}
    for layer, expected in ((1, 200), (2, 200), (3, 5), (5, 5), (6, 200), (7, 4), (8, 4)):
        shown = changed(replace(view, layer=layer), memory=Memory(notes, layer, (0, 1)))
        assert len(read(method, shown)[0]) == expected


def test_hip_scores_logarithmically_many_blocks() -> None:
    """k log2(T / k) keys and not T: doubling the length adds one round."""

    def scored(leaves: int) -> int:
        asked = 0

        def score(leaf: torch.Tensor) -> torch.Tensor:
            nonlocal asked
            asked += leaf.shape[1]
            return -(leaf - 100).abs().float()

        found = descend(score, torch.tensor([leaves]), 16)
        assert int(found.sum()) == 16
        return asked

    counts = [scored(1 << power) for power in range(6, 13)]
    assert {b - a for a, b in pairwise(counts)} == {32}


def test_hip_finds_a_smooth_peak() -> None:
    view = make_view(1024, t=1)
    place = torch.arange(1024)
    keys = torch.zeros_like(view.keys)
    keys[0, :, 0], keys[1, :, 0] = -(((place - 300) / 100.0) ** 2), -(((place - 801) / 100.0) ** 2)
    queries = torch.zeros_like(view.queries)
    queries[..., 0] = 1.0
    first, second = read(HipDecode(32, **BARE), changed(view, keys=keys, queries=queries))
    assert set(range(290, 311)) <= first
    assert set(range(790, 811)) <= second


def test_extended_mind_looks_at_keys_without_their_rotation() -> None:
    turn = rope(16)
    view = make_view(300, t=1, turn=turn)
    bare = torch.randn(2, 300, 16, generator=torch.Generator().manual_seed(3))
    query = torch.randn(2, 2, 1, 16, generator=torch.Generator().manual_seed(4))
    bare[0, 17], bare[1, 230] = 0.5 * query[0, 0, 0], 0.5 * query[1, 1, 0]
    rotated = turn.rotate(bare, view.positions), turn.rotate(query, view.query_positions)
    view = changed(view, keys=rotated[0], queries=rotated[1])
    first, second = read(ExtendedMind(1, **BARE), view)
    assert 17 in first and 230 in second
    assert len(first) <= 2 and len(second) <= 2
    assert read(ExtendedMind(10, floor=0.99, **BARE), view) == [{17}, {230}]


@pytest.mark.parametrize("t", [1, 20])
@pytest.mark.parametrize("method", [LongHeads(32, size=8, positions="compact"), TokenSelect(32, positions="compact")])
def test_choices_for_other_positions_do_not_depend_on_true_ones(method: Select, t: int) -> None:
    """Nor do they differ from the slow truth; with true positions the same texts are read differently."""
    method, turn, view = replace(method, **BARE), rope(16), make_view(200, t=t)

    def at(start: int) -> View:
        keys = turn.rotate(view.keys, view.positions)
        later = turn.rotate(view.queries, view.query_positions + start)
        moved = changed(view, keys=keys, queries=later, query_positions=view.query_positions + start, rope=turn)
        return replace(moved, seen=200 + start)

    near, far = (read(method, at(start)) for start in (0, 5000))
    assert near == far
    assert near == [set(one.tolist()) for one in method.plain(at(0)).indices]
    true = replace(method, positions="true")
    assert read(true, at(0)) != read(true, at(5000))


def test_quest_still_reads_whole_pages_only() -> None:
    for chosen in read(Quest(50, sinks=0, recent=0), make_view(100, t=1)):
        whole = {page for page in range(7) if set(range(page * 16, min(100, page * 16 + 16))) <= chosen}
        assert len(chosen) == sum(min(16, 100 - page * 16) for page in whole)


def test_qada_predicts_the_mass_of_gaussian_keys_within_five_percent() -> None:
    """Of the log-mass: with the share that 5 % more would leave, the head is local, with that of 5 % less it is not."""
    view = make_view(4096, g=1, t=1)
    scores = torch.einsum("hd,hnd->hn", view.queries[:, 0, 0], view.keys) * view.scale
    for head in range(2):
        near, far = scores[head, -64:].logsumexp(0), scores[head, :-64].logsumexp(0)
        for factor, read in ((1.05, 64), (0.95, 4096)):
            share = float(torch.sigmoid(near - factor * far))
            assert len(QAdA(64, share=share, **BARE).select(view.subset((head,))).indices[0]) == read


def test_qada_reads_far_tokens_only_where_the_query_points_at_them() -> None:
    view = make_view(1000, g=1, t=1)
    keys, queries = 0.1 * view.keys, torch.zeros_like(view.queries)
    keys[:, :900, 0], keys[:, 900:, 1] = 3.0, 3.0
    queries[0, ..., 0], queries[1, ..., 1] = 10.0, 10.0
    chosen = QAdA(100, **BARE).select(changed(view, keys=keys, queries=queries)).indices
    assert [len(one) for one in chosen] == [1000, 100]


def test_magicpig_estimates_the_sums_of_attention_without_bias() -> None:
    """Mean over 300 draws of sum(exp(score) / p) against the sum over all keys, by query, to 5 %."""
    view = make_view(200, g=2, t=1)
    method = MagicPIG(0.99, bits=3, tables=6, **BARE)
    truth = (torch.einsum("hgtd,hnd->hgtn", view.queries, view.keys) * view.scale).exp().sum(-1)
    total, read = torch.zeros_like(truth), 0.0
    for seed in range(300):
        where = method.select(shown(method, replace(view, seed=seed)))
        read += sum(len(one) for one in where.tokens.indices) / 2 / 300
        for head, (entries, bias) in enumerate(zip(where.tokens.indices, where.bias, strict=True)):
            scores = view.queries[head] @ view.keys[head, entries].T * view.scale
            total[head] += (scores + bias).exp().sum(-1) / 300
    assert 20 < read < 190
    torch.testing.assert_close(total, truth, rtol=0.05, atol=0)


def test_magicpig_thins_what_it_draws_to_the_budget() -> None:
    method = MagicPIG(40, sinks=4, recent=10)
    where = method.select(shown(method, make_view(200, t=1)))
    assert [len(one) for one in where.tokens.indices] == [40, 40]
    assert all({0, 1, 2, 3, *range(190, 200)} <= set(one.tolist()) for one in where.tokens.indices)


def test_a_selection_steps_aside_below_its_break_even_and_the_ledger_says_so() -> None:
    text = Text.random(geometry(), 106)
    dense = run(geometry(), Recipe(), text, [100], 6)[1]
    for recipe, aside in (("exact_topk(20, pays_from=104)", 6), ("exact_topk(103)", 6), ("exact_topk(20)", 0)):
        session, out = run(geometry(), Recipe.parse(recipe), text, [100], 6)
        assert torch.allclose(out[..., :103, :], dense[..., :103, :], atol=1e-5) == bool(aside)  # the first three steps
        assert session.ledger.stepped_aside["exact_topk"] == aside
        assert ("stepped aside" in session.report()) == bool(aside)
    with pytest.raises(HeadwiseError, match="pays_from"):
        ExactTopK(20, pays_from=-1)


def test_auto_stands_for_the_length_at_which_the_method_was_measured_to_pay() -> None:
    recipe = Recipe.parse("quest(2048, pays_from='auto')")
    assert Recipe.parse(str(recipe)) == recipe
    assert not recipe.select.pays(recipe.select.breaks_even - 1)
    assert recipe.select.pays(recipe.select.breaks_even)
    with pytest.raises(HeadwiseError, match=r"exact_topk: .* not measured to be quicker"):
        Recipe.parse("exact_topk(20, pays_from='auto')")
    with pytest.raises(HeadwiseError, match="'often'"):
        ExactTopK(20, pays_from="often")
