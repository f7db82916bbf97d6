"""What keys are worth by themselves, and to their neighbours, by brute force."""

from __future__ import annotations

from dataclasses import replace

import torch

from headwise.methods.evict.compactor import Compactor
from headwise.methods.evict.finch import Finch
from headwise.methods.evict.leverage import LeverageScore
from headwise.methods.evict.non_causal import NonCausalAttention
from headwise.shapes import Mark
from tests.methods.views import changed, granting, make_view, rope


def test_with_as_many_directions_as_channels_leverage_is_that_of_the_keys_themselves() -> None:
    view = make_view(80, turn=rope(16))
    for seed in (0, 5):
        found = LeverageScore(0.5, directions=16).score(replace(view, seed=seed))
        for head in range(2):
            keys = view.rope.unrotate(view.keys[head], view.positions[head]).double()
            keys = keys - keys.mean(0)
            hat = keys @ torch.linalg.pinv(keys)
            torch.testing.assert_close(found[head], hat.diagonal(), atol=2e-2, rtol=0)


def among(view: object, head: int, size: int, first: int) -> list[float]:
    """What each token gets of the queries of its chunk, times the norm of its value, token by token."""
    got = [0.0] * view.count
    for g in range(view.queries.shape[1]):
        for i, place in enumerate(view.query_positions.tolist()):
            inside = [
                j for j, at in enumerate(view.positions[head].tolist())
                if (at - first) // size == (place - first) // size and place >= first
            ]  # fmt: skip
            if inside:
                weights = (view.keys[head, inside].double() @ view.queries[head, g, i].double()).softmax(0)
                for j, weight in zip(inside, weights.tolist(), strict=True):
                    got[j] += weight / view.queries.shape[1]
    return [one * float(value.norm()) for one, value in zip(got, view.values[head], strict=True)]


def test_new_tokens_are_worth_what_their_chunk_gives_them_and_old_ones_what_they_were() -> None:
    view = make_view(61)
    for method in (NonCausalAttention(0.5, size=16, sinks=3), Compactor(0.5, size=16, sinks=3)):
        known = torch.zeros(2, 61, 1)
        known[:, :10] = 7.0
        noted = method.note(granting(changed(view, notes=known), method.view_needs))
        assert noted.shape == (2, 61, 1)
        assert (noted[:, :10] == 7.0).all()
        for head in range(2):
            worth = [0.0, *among(view, head, 16, 3), 0.0]
            smooth = [sum(worth[j : j + 3]) / 3 for j in range(61)]
            torch.testing.assert_close(noted[head, 10:, 0], torch.tensor(smooth[10:]), atol=1e-4, rtol=1e-4)


def test_the_question_that_is_marked_votes_and_nothing_else() -> None:
    view = make_view(60)
    marked = changed(view, marks=(Mark("example", 0, 20), Mark("question", 48, 55)))
    found, short = Finch(0.5, window=5).score(marked), Finch(0.5, window=12).score(view)
    torch.testing.assert_close(found, short)
    assert found[:, 48:].isinf().all() and found[:, :48].isfinite().all()
    assert not torch.equal(found, Finch(0.5, window=5).score(view))
