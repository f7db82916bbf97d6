"""Eviction methods that write something down about each token: what they note, and what it does."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from headwise.attention.view import View
from headwise.choose import choose
from headwise.methods.evict.lazy import LazyEviction
from headwise.methods.evict.raas import RaaS
from headwise.methods.evict.task_kv import TaskKV
from tests.methods.views import changed, granting, make_view


def fresh(view: View) -> View:
    return changed(view, notes=torch.zeros(*view.positions.shape, 2))


def attention(view: View, head: int, query: int) -> list[float]:
    """Mean attention over the group of one query, token by token."""
    total = [0.0] * view.count
    for group in range(view.queries.shape[1]):
        logits = [float(k @ view.queries[head, group, query]) * view.scale for k in view.keys[head]]
        visible = [int(p) <= int(view.query_positions[query]) for p in view.positions[head]]
        top = max(x for x, ok in zip(logits, visible, strict=True) if ok)
        weights = [math.exp(x - top) if ok else 0.0 for x, ok in zip(logits, visible, strict=True)]
        total = [t + w / sum(weights) / view.queries.shape[1] for t, w in zip(total, weights, strict=True)]
    return total


def test_lazy_notes_the_last_use_and_the_longest_gap() -> None:
    view = fresh(make_view(60, t=20))
    method = LazyEviction(0.5, alpha=0.02)
    noted = method.note(granting(view, method.view_needs))
    for head in range(2):
        last, longest = [float(p) for p in view.positions[head]], [0.0] * 60
        for query, now in enumerate(view.query_positions.tolist()):
            for token, weight in enumerate(attention(view, head, query)):
                if weight > 0.02 and now > last[token]:
                    longest[token] = max(longest[token], now - last[token])
                    last[token] = now
        assert noted[head].tolist() == [list(pair) for pair in zip(last, longest, strict=True)]
    assert torch.equal(method.note(granting(changed(view, notes=noted), method.view_needs)), noted)


def test_lazy_keeps_what_comes_back_and_gives_up_what_is_overdue() -> None:
    notes = torch.zeros(1, 100, 2)
    notes[0, :, 0] = torch.arange(100)
    notes[0, 10], notes[0, 20] = torch.tensor([70.0, 40.0]), torch.tensor([70.0, 2.0])
    view = replace(make_view(100, h=1), seen=100)
    view = changed(view, notes=notes)
    score = LazyEviction(20, window=16).score(view)[0]
    assert score[10] > score[20] > score[30]
    assert score[84:].isposinf().all() and not score[:84].isposinf().any()


def test_raas_stamps_the_pages_that_queries_use_and_keeps_the_prompt() -> None:
    view = replace(fresh(make_view(96, t=4)), phase="decode")
    keys, queries = 0.1 * view.keys, torch.zeros_like(view.queries)
    keys[:, 37], queries[:, :, 1] = 4.0, 4.0
    notes = torch.zeros(2, 96, 2)
    notes[:, :16, 1] = 1
    method = RaaS(40, used=0.15)
    noted = method.note(granting(changed(view, keys=keys, queries=queries, notes=notes), method.view_needs))
    assert noted[:, 32:48, 0].eq(93).all()  # the position of the second of the last four queries
    assert noted[:, 48:64, 0].eq(63).all()
    assert noted[:, :, 1].sum(1).tolist() == [16, 16]
    kept = choose(method.score(changed(view, notes=noted)), 48, method.protect(view))
    assert kept[0].tolist() == [*range(16), *range(32, 48), *range(80, 96)]


def test_raas_notes_that_a_token_was_of_a_prompt_once_and_for_all() -> None:
    view = fresh(make_view(64, t=8))
    method = RaaS(40)
    first = method.note(view)
    assert first[..., 1].eq(1).all()
    later = method.note(replace(changed(view, notes=first), phase="decode"))
    assert torch.equal(later, first)


def test_task_kv_finds_the_head_whose_output_is_far_from_the_others_once_and_for_all() -> None:
    view = fresh(make_view(50, h=4, t=8))
    values = view.values.clone()
    values[2] += 50.0
    method = TaskKV(0.5, share=0.25)
    noted = method.note(granting(changed(view, values=values), method.view_needs))
    assert noted[..., 0].amax(1).tolist() == [1, 1, 2, 1]
    values[2] -= 50.0
    values[0] += 50.0
    later = changed(view, values=values, notes=torch.cat((noted[:, :40], torch.zeros(4, 10, 1)), 1))
    assert torch.equal(method.note(later), noted)
    score = method.score(changed(view, notes=noted))
    assert score[2].min() > score[[0, 1, 3]].max()


@pytest.mark.parametrize("gone", [False, True])
def test_group_means_are_what_the_view_observes(gone: bool) -> None:
    view = make_view(80, t=20)
    if gone:  # the token of the last query but one has left
        left = torch.cat((torch.arange(78), torch.tensor([79])))
        view = replace(view, positions=view.positions[:, left], granted={})
        full = make_view(80, t=20)
        view = changed(view, keys=full.keys[:, left], queries=full.queries, query_positions=full.query_positions)
    want, pieces = view.observe(20).mean(1), list(view.group_means(20))
    assert torch.equal(torch.cat([at for at, _ in pieces]), view.query_positions)
    got = torch.cat([torch.nn.functional.pad(one, (0, view.count - one.shape[2])) for _, one in pieces], 1)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-4)
