import dataclasses

import pytest
import torch

from headwise.attention import View
from headwise.attention.view import GRANTABLE
from headwise.errors import HeadwiseError, ShapeError
from headwise.forms import Scoring
from tests.attention_cases import exact, qkv


def view(positions: torch.Tensor, **granted: object) -> View:
    heads = tuple(range(2, 2 + positions.shape[0]))
    return View(
        layer=3,
        heads=heads,
        phase="decode",
        seen=30,
        scoring=Scoring(0.4),
        seed=0,
        positions=positions,
        granted=granted,
    )


POSITIONS = torch.tensor([[0, 2, 3, 9, 20, 28], [1, 2, 5, 6, 27, 29]])


def test_only_what_was_asked_for() -> None:
    _, k, v = qkv(2, 2, 3, 6)
    bare, given = view(POSITIONS), view(POSITIONS, keys=k, values=v, rope=None)
    assert given.keys is k
    assert given.values is v
    assert given.rope is None
    assert given.count == 6
    for name in GRANTABLE:
        with pytest.raises(HeadwiseError, match=f"add '{name}' to the method's `needs`"):
            getattr(bare, name)
    with pytest.raises(HeadwiseError, match="'mass'"):
        _ = given.mass


def test_nothing_else_can_be_granted_or_changed() -> None:
    with pytest.raises(HeadwiseError, match="'model'"):
        view(POSITIONS, model=object())
    with pytest.raises(dataclasses.FrozenInstanceError):
        view(POSITIONS).layer = 1  # type: ignore[misc]


def test_shapes_are_checked() -> None:
    with pytest.raises(ShapeError, match="h=1"):
        View(0, (0,), "prefill", 3, Scoring(1.0), 0, POSITIONS)
    with pytest.raises(ShapeError, match="keys"):
        view(POSITIONS, keys=torch.zeros(2, 5, 4))
    with pytest.raises(ShapeError, match="mass"):
        view(POSITIONS, mass=torch.zeros(1, 6))


@pytest.mark.parametrize("window", [1, 2, 3])
def test_observe_is_causal_by_true_positions(window: int) -> None:
    q, k, _ = qkv(2, 2, 3, 6)
    times = torch.tensor([0, 28, 29])
    seen = (POSITIONS[:, None] <= times[:, None])[:, 3 - window :]
    want = exact(q[:, :, 3 - window :], k, k, seen, 0.4)[2]
    got = view(POSITIONS, keys=k, queries=q, query_positions=times).observe(window)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, atol=1e-6, rtol=1e-5)
    if window == 3:
        assert got[1, :, 0].abs().sum() == 0  # head 1 holds nothing that a query at position 0 may see


def test_observe_uses_the_cap_and_refuses_other_windows() -> None:
    q, k, _ = qkv(2, 2, 3, 6)
    base = view(POSITIONS, keys=k, queries=q, query_positions=torch.tensor([27, 28, 29]))
    capped = dataclasses.replace(base, scoring=Scoring(base.scale, 0.3))
    want = exact(q, k, k, POSITIONS[:, None] <= torch.tensor([27, 28, 29])[:, None], 0.4, 0.3)[2]
    torch.testing.assert_close(capped.observe(3).double(), want, atol=1e-6, rtol=1e-5)
    for window in (0, 4):
        with pytest.raises(HeadwiseError, match="last 3 queries"):
            base.observe(window)


def test_subset_takes_the_heads_of_everything() -> None:
    q, k, v = qkv(2, 2, 3, 6)
    pages = k[:, :4].unflatten(1, (2, 2))
    whole = view(
        POSITIONS, keys=k, values=v, queries=q, query_positions=torch.arange(27, 30), mass=k[..., 0], summaries=pages
    )
    turned = whole.subset([1, 0])
    assert turned.heads == (3, 2)
    assert torch.equal(turned.positions, POSITIONS.flip(0))
    torch.testing.assert_close(turned.observe(2), whole.observe(2).flip(0))
    for name in ("keys", "values", "queries", "mass", "summaries"):
        assert torch.equal(getattr(turned, name), getattr(whole, name).flip(0))
    alone = whole.subset([1])
    assert alone.heads == (3,)
    assert torch.equal(alone.keys, k[1:])


def test_cuts_and_entries_are_found_without_looking_at_every_token() -> None:
    whole = dataclasses.replace(view(POSITIONS), seen=30)
    for first in range(-1, 32):
        for last in range(-1, 32):
            want = [(int((own < first).sum()), int((own < max(first, last)).sum())) for own in POSITIONS]
            assert whole.cuts(first, last) == want
    wanted = [torch.tensor([0, 1, 3, 20, 29]), torch.tensor([0, 1, 27, 29])]
    assert [one.tolist() for one in whole.entries(wanted)] == [[0, 2, 4], [0, 4, 5]]
    every = dataclasses.replace(whole, positions=torch.arange(6).repeat(2, 1), seen=6)
    assert [one.tolist() for one in every.entries([torch.tensor([1, 5]), torch.tensor([2])])] == [[1, 5], [2]]
