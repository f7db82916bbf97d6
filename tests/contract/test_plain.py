"""Point 13: every method equals its own slow truth, written from the paper's equations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from headwise.attention.view import View
from headwise.cache.factory import new_store
from headwise.cache.levelled import LevelledStore
from headwise.cache.shape import Shape
from headwise.choose import choose
from headwise.forms import Causal, Weighted, Where
from headwise.methods.evict import Evict
from headwise.registry import all_methods
from headwise.shapes import Rope
from tests.contract.drive import SMALL, names, small
from tests.methods.views import calibrated, changed, granting, make_view, remembering, rope, shown, thinned

SIZES = [1, 63, 100, 257]
GROUPS = [1, 2, 4, 8]
ROPES = {"none": None, "halves": rope(16), "partial": rope(8), "pairs": rope(16, interleaved=True, scale=1.1)}


def of(name: str) -> Any:
    return getattr(small(name), all_methods()[name].part)


def seen_by(part: Any, view: View) -> View:
    return shown(part, view)


@pytest.mark.parametrize("g", GROUPS)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", names("evict"))
def test_scores(name: str, n: int, g: int) -> None:
    check_scores(of(name), make_view(n, g, turn=ROPES["halves"] if g > 1 else None))


@pytest.mark.parametrize("turn", ROPES.values(), ids=ROPES)
@pytest.mark.parametrize("name", [name for name in names("evict") if "rope" in all_methods()[name].needs])
def test_scores_under_every_rotary_embedding(name: str, turn: Rope | None) -> None:
    check_scores(of(name), make_view(63, 2, 40, turn=turn))


@pytest.mark.parametrize("name", names("evict"))
def test_scores_after_an_earlier_eviction(name: str) -> None:
    view = make_view(100, 2, 20)
    gaps = torch.stack([torch.arange(100) * 2 + head for head in range(2)])
    gaps[:, 80:] = torch.arange(230, 250)
    view = changed(replace(view, positions=gaps, seen=250), query_positions=torch.arange(230, 250))
    check_scores(of(name), view)


@pytest.mark.parametrize("name", [name for name in names("evict") if all_methods()[name].note is not Evict.note])
def test_notes(name: str) -> None:
    """What a method writes down of a prompt, and then of steps after an earlier eviction."""
    part = of(name)
    nothing = torch.zeros(2, 100, part.notes)
    prompt = changed(make_view(100, 2), notes=nothing)
    later = replace(make_view(100, 2, 20), phase="decode")
    later = thinned(changed(later, notes=part.note(seen_by(part, prompt))), 25)
    for view in (prompt, replace(prompt, phase="decode"), later):
        fast, slow = part.note(seen_by(part, view)), part.plain_note(view)
        torch.testing.assert_close(fast.double(), slow.double())


def check_scores(part: Any, view: View) -> None:
    fast, slow = part.score(seen_by(part, view)).double(), part.plain(view).double()
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-4)
    count, protect = part.amount.tokens_of(view.count), part.protect(view)
    for one, other in zip(choose(fast, count, protect), choose(slow, count, protect), strict=True):
        assert len(set(one.tolist()) & set(other.tolist())) >= 0.99 * len(other)


@pytest.mark.parametrize("gone", [0, 20])
@pytest.mark.parametrize("told", [range(40), range(30, 63)])
@pytest.mark.parametrize("name", [name for name in names("evict") if of(name).rehearsal])
def test_what_a_rehearsal_tells(name: str, told: range, gone: int) -> None:
    """Of 63 tokens stored, some of them read again after 5 others. Before, some others may have left."""
    part, view = of(name), make_view(63 + 5 + len(told), 2, 5 + len(told))
    left = [place for place in range(2, told.start) if place % 2 == 1][:gone]
    stays = torch.ones(view.count, dtype=torch.bool)
    stays[left] = False
    granted = granting(view, part.view_needs - {"notes"}).granted
    granted |= {one: granted[one][:, stays] for one in {"keys", "values"} & granted.keys()}
    view = replace(view, positions=view.positions[:, stays], granted=granted)
    fast, slow = part.rehearse(view, told), part.plain_rehearsal(view, told)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-4)


def asking(part: Any, n: int, g: int) -> Iterator[View]:
    """What a pattern is asked for n tokens: chunks of a prompt, or steps of a few new tokens, the first one there is
    and, where the method remembers, a later one."""
    for t in {n, n // 2, 1} - {0} if part.part == "prefill" else {1, min(n, 3)}:
        yield make_view(n, g, t)
        if "memory" in part.view_needs and n > 8:
            yield remembering(part, n, g, t)


def read_by(part: Any, view: View) -> Where:
    """What the part reads for the view's queries."""
    where: Where = (part.where if part.part == "prefill" else part.select)(seen_by(part, view))
    return where


def drawn(part: Any, view: View) -> torch.Tensor:
    """The same, bool [h or 1, t, n]."""
    return read_by(part, view).dense(view.queries.shape[2], view.count)


@pytest.mark.parametrize("g", GROUPS)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", names("prefill", "select"))
def test_patterns(name: str, n: int, g: int) -> None:
    part = of(name)
    for view in asking(part, n, g):
        fast, slow = drawn(part, view), part.plain(view).dense(view.queries.shape[2], n)
        assert (fast == slow).double().mean() >= 0.99
        assert torch.equal(fast.expand_as(slow) if fast.shape[0] == 1 else fast, slow)


@pytest.mark.parametrize("name", names("select"))
def test_what_chosen_tokens_count_for(name: str) -> None:
    """Where a choice comes with a bias on scores, of samples or of keys that not every query reads."""
    part = of(name)
    for view in asking(part, 100, 2):
        fast, slow = read_by(part, view), part.plain(view)
        assert isinstance(fast, Weighted) == isinstance(slow, Weighted)
        for one, other in zip(getattr(fast, "bias", ()), getattr(slow, "bias", ()), strict=True):
            torch.testing.assert_close(one.double().expand_as(other), other.double(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("turn", ROPES.values(), ids=ROPES)
@pytest.mark.parametrize("name", [name for name in names("prefill") if all_methods()[name].calibrates])
def test_patterns_by_a_calibration(name: str, turn: Rope | None) -> None:
    """What a trained network says, the slow truth says as well."""
    part = of(name)
    for n, t in ((257, 257), (100, 50)):
        view = calibrated(part, make_view(n, 2, t, turn=turn))
        fast, slow = drawn(part, view), part.plain(view).dense(t, n)
        assert torch.equal(fast.expand_as(slow) if fast.shape[0] == 1 else fast, slow)
        if n == 257:
            assert not torch.equal(fast, drawn(part, make_view(n, 2, t, turn=turn))), "the calibration changes nothing"


@pytest.mark.parametrize("n", SIZES[1:])
@pytest.mark.parametrize("name", names("select"))
def test_patterns_after_an_earlier_eviction(name: str, n: int) -> None:
    part, gone = of(name), n // 4
    for t in (1, 3):
        for view in (thinned(make_view(n, 2, t), gone), remembering(part, n, 2, t, gone)):
            fast, slow = drawn(part, view), part.plain(view).dense(t, n - gone)
            assert torch.equal(fast.expand_as(slow), slow)


@pytest.mark.parametrize("name", names("prefill", "select"))
def test_patterns_are_compared_where_they_leave_pairs_out(name: str) -> None:
    part = of(name)
    assert any(
        not bool((drawn(part, view) | ~Causal().dense(view.queries.shape[2], n)).all())
        for n in SIZES
        for view in asking(part, n, 2)
    )


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", names("budget"))
def test_counts(name: str, n: int, share: float) -> None:
    budget, generator = of(name), torch.Generator().manual_seed(n)
    scores = torch.rand(4, n, generator=generator) * torch.tensor([[1.0], [2.0], [5.0], [0.1]])
    protect = torch.rand(4, n, generator=generator) < 0.02
    scores[1, : n // 2], protect[1, : n // 2] = -torch.inf, False
    for layer in (0, 2, 5):
        count = max(1, round(n * share))
        local = round(count * budget.layer_share(layer, 6, count / n))
        fast, slow = budget.allot(scores, protect, local), budget.plain(scores, protect, count, layer, 6)
        assert fast.tolist() == slow.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", names("compress"))
def test_codecs(name: str, n: int, dtype: torch.dtype) -> None:
    compress, view = of(name), make_view(n, 2)
    keys, values = view.keys.to(dtype), view.values.to(dtype)
    keys[0, 0] = 0
    view = changed(view, keys=keys, values=values)
    store = new_store(Shape(2, 16, 12, dtype), compress.levels)
    store.append(keys, values, view.positions)
    if isinstance(store, LevelledStore):
        store.demote(list(compress.level(seen_by(compress, view))))
    fast = [store.segment(first, last) for first, last in store.runs()]
    held = (torch.cat([getattr(one, name) for one in fast]) for name in ("keys", "values"))
    for got, expected in zip(held, compress.plain(view), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-2 if dtype != torch.float32 else 1e-6)


def test_the_small_knobs_are_knobs_of_some_method() -> None:
    known = {field for cls in all_methods().values() for field in cls.__dataclass_fields__}
    assert set(SMALL) <= known
