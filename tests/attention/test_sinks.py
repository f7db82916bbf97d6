"""Sink logits against brute force: a softmax with one column more, whose value is nothing."""

from __future__ import annotations

import pytest
import torch

from headwise.attention import (
    attend,
    block_maxima,
    column_mass,
    column_peaks,
    kept_mass,
    row_entropy,
    row_lse,
    window_probabilities,
)
from headwise.attention.attend import prepare_pages
from headwise.attention.byproducts import group_mass
from headwise.attention.view import View
from headwise.errors import HeadwiseError, ShapeError
from headwise.forms import Attended, Causal, Full, Scoring, Sinks, Where, Window, join
from headwise.kernels.dispatch import BACKENDS, only
from tests.attention_cases import attend_on, drawn, forms, qkv

SCALE = 0.5
LOGITS = torch.tensor([[0.3, 4.0], [-3.0, 1.5]])
SUNK = Scoring(SCALE, sinks=Sinks(LOGITS))
SHAPES = [(1, 1), (1, 37), (5, 37), (40, 40), (19, 64)]
ATTENDING = [name for name, one in BACKENDS.all().items() if "attend" in one.kernels and one.available()[0]]


def with_column(q: torch.Tensor, k: torch.Tensor, visible: torch.Tensor, softcap: float | None = None) -> torch.Tensor:
    """Probabilities [h, g, t, n + 1] in float64, the sink's last."""
    s = torch.einsum("hgtd,hnd->hgtn", q.double(), k.double()) * SCALE
    s = s if softcap is None else softcap * torch.tanh(s / softcap)
    s = s.masked_fill(~visible[:, None], -torch.inf)
    return torch.cat((s, LOGITS.double()[:, :, None, None].expand(*s.shape[:3], 1)), -1).softmax(-1)


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize(("t", "n"), SHAPES)
def test_attention_of_every_form(t: int, n: int, softcap: float | None) -> None:
    q, k, v = qkv(2, 2, t, n, 16)
    scoring = Scoring(SCALE, softcap, Sinks(LOGITS))
    for where in forms(2, t, n):
        p = with_column(q, k, drawn(where, 2, t, n), softcap)
        got = attend(q, k, v, where, scoring)
        torch.testing.assert_close(
            got.out.double(), torch.einsum("hgtn,hne->hgte", p[..., :-1], v.double()), atol=1e-5, rtol=1e-5
        )
        lse = LOGITS.double()[..., None] - p[..., -1].log()
        torch.testing.assert_close(got.lse.double(), lse, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ATTENDING)
def test_every_backend(backend: str, dtype: torch.dtype) -> None:
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for t, n in SHAPES:
        q, k, v = (x.to(dtype) for x in qkv(2, 2, t, n, 16))
        for where in (Full(), Causal(), Window(4)):
            p = with_column(q, k, drawn(where, 2, t, n))
            out = torch.einsum("hgtn,hne->hgte", p[..., :-1], v.double())
            got = attend_on(backend, q, k, v, where, SUNK).out
            assert got.dtype == dtype
            torch.testing.assert_close(got.double(), out, atol=tolerance, rtol=tolerance)


def test_parts_are_read_of_keys_alone_and_sinks_join_once() -> None:
    q, k, v = qkv(2, 2, 3, 40, 16)
    whole = attend(q, k, v, Causal(), SUNK)
    parts = [
        attend(q, k[:, :20], v[:, :20], Full(), SUNK.of_keys),
        attend(q, k[:, 20:37], v[:, 20:37], Full(), SUNK.of_keys),
        attend(q, k[:, 37:], v[:, 37:], Causal(), SUNK.of_keys),
    ]
    for got in (SUNK.joined(join(parts)), SUNK.joined(parts[0]) + parts[1] + parts[2]):
        assert got.with_sinks
        torch.testing.assert_close(got.out, whole.out)
        torch.testing.assert_close(got.lse, whole.lse)


def test_sinks_that_would_join_twice_are_refused() -> None:
    q, k, v = qkv(2, 2, 3, 40, 16)
    parts = [attend(q, k[:, one], v[:, one], Full(), SUNK) for one in (slice(20), slice(20, 40))]
    with pytest.raises(HeadwiseError, match=r"joined 2 of the parts to add; read parts by `Scoring\.of_keys`"):
        join(parts)
    with pytest.raises(HeadwiseError, match="join attention once, after all keys"):
        SUNK.joined(parts[0])
    with pytest.raises(HeadwiseError, match="prepared for keys alone"):
        prepare_pages(q, [], Full(), SUNK)


def test_nothing_seen_and_sinks_of_nothing() -> None:
    """A query that sees no key gives all to its sink; sinks of -inf are none."""
    q, k, v = qkv(2, 2, 3, 40, 16)
    empty = SUNK.joined(Attended.empty(q, 16))
    assert not empty.out.any() and torch.equal(empty.lse, LOGITS[..., None].expand(2, 2, 3))
    none = Scoring(SCALE, sinks=Sinks(torch.full((2, 2), -torch.inf)))
    got, plain = attend(q, k, v, Causal(), none), attend(q, k, v, Causal(), Scoring(SCALE))
    assert torch.equal(got.out, plain.out) and torch.equal(got.lse, plain.lse)
    assert not none.joined(Attended.empty(q, 16)).out.any()
    assert torch.equal(column_mass(q, k, Causal(), none), column_mass(q, k, Causal(), Scoring(SCALE)))


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize(("t", "n"), SHAPES)
def test_what_scores_tell(t: int, n: int, backend: str) -> None:
    q, k, _ = qkv(2, 2, t, n, 16)
    everywhere: list[Where] = [Full(), Causal(), Window(4)]
    with only(backend):
        for where in everywhere:
            p = with_column(q, k, drawn(where, 2, t, n))
            near = {"atol": 1e-5, "rtol": 1e-5}
            for found, truth in (
                (column_mass(q, k, where, SUNK), p[..., :-1].sum((1, 2))),
                (column_mass(q, k, where, SUNK, last=1), p[:, :, -1:, :-1].sum((1, 2))),
                (column_peaks(q, k, where, SUNK), p[..., :-1].amax(2)),
                (row_lse(q, k, where, SUNK), LOGITS.double()[..., None] - p[..., -1].log()),
                (row_entropy(q, k, where, SUNK), torch.special.entr(p).sum(-1)),
            ):
                torch.testing.assert_close(found.double(), truth, **near)
            lse = attend(q, k, k, where, SUNK).lse
            torch.testing.assert_close(
                column_mass(q, k, where, SUNK, lse=lse).double(), p[..., :-1].sum((1, 2)), **near
            )
        p = with_column(q, k, drawn(Causal(), 2, t, n))
        torch.testing.assert_close(window_probabilities(q, k, SUNK).double(), p[..., :-1], **near)
        if t <= 16:
            torch.testing.assert_close(group_mass(q, k, SUNK).double(), p[..., :-1].sum(1), **near)
        lse = row_lse(q, k, Causal(), SUNK)
        highest = block_maxima(q, k, SUNK, block=16, below=lse).exp()
        assert torch.allclose(highest.amax((2, 3)).double(), p[..., :-1].amax((2, 3)), atol=1e-5)


def test_what_a_sink_gets_is_not_lost() -> None:
    q, k, _ = qkv(2, 2, 5, 40, 16)
    kept = torch.arange(40).expand(2, -1) % 3 == 0
    p = with_column(q, k, drawn(Causal(), 2, 5, 40))[..., :-1]
    lost = (p * ~kept[:, None, None]).sum((1, 2, 3)) / (2 * 5)
    torch.testing.assert_close(1 - kept_mass(q, k, kept, Causal(), SUNK).double(), lost, atol=1e-5, rtol=1e-5)
    last = (p * ~kept[:, None, None])[:, :, -2:].sum((1, 2, 3)) / (2 * 2)
    torch.testing.assert_close(1 - kept_mass(q, k, kept, Causal(), SUNK, last=2).double(), last, atol=1e-5, rtol=1e-5)


def test_a_view_has_the_sinks_of_its_heads() -> None:
    q, k, _ = qkv(2, 2, 4, 40, 16)
    positions = torch.arange(40).expand(2, -1)
    granted = {"queries": q, "keys": k, "query_positions": torch.arange(36, 40)}
    view = View(0, (0, 1), "prefill", 40, SUNK, 0, positions, granted)
    p = with_column(q, k, drawn(Causal(), 2, 4, 40))[..., :-1]
    torch.testing.assert_close(view.observe(4).double(), p, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(view.subset([1]).observe(4).double(), p[1:], atol=1e-5, rtol=1e-5)
    means = torch.cat([rows for _, rows in view.group_means(4)], 1)
    torch.testing.assert_close(means.double(), p.mean(1), atol=1e-5, rtol=1e-5)


def test_sinks_of_other_heads_are_refused() -> None:
    q, k, v = qkv(2, 2, 4, 40, 16)
    other = Scoring(SCALE, sinks=Sinks(torch.zeros(2, 3)))
    for call in (lambda: attend(q, k, v, Causal(), other), lambda: column_mass(q, k, Causal(), other)):
        with pytest.raises(ShapeError, match=r"sink logits \[2, 3\] are not those of queries \[2, 2, 4, 16\]"):
            call()
