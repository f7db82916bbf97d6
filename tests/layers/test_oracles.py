"""The operators beside flash-linear-attention's naive ones, and where a running sum could overflow."""

from __future__ import annotations

import pytest
import torch

from headwise.layers.base import Dims, Streams, StreamShape
from headwise.layers.layer import AttentionLayer
from headwise.layers.linear.random_features import Performer
from headwise.layers.sentence import LayerSentence, parse_pattern
from tests.layers.oracle import DIM, HEADS, ROWS, SHOWN, TOKENS, answers, given

# By operator: the mix that it is, and what it is given of `given()`.
OPERATORS = {
    "linear": ("linear", "q", "k", {}),
    "taylor": ("taylor", "q", "k", {}),
    "simple_gla": ("retention", "q", "k", {"decay": "decay"}),
    "gla": ("gla", "q", "k", {"decay": "decays"}),
    "delta": ("delta", "unit_q", "unit_k", {"beta": "beta"}),
    "gated_delta": ("gated_delta", "unit_q", "unit_k", {"beta": "beta", "decay": "decay"}),
    "kda": ("kda", "unit_q", "unit_k", {"beta": "beta", "decay": "decays"}),
}


def streams(q: str, k: str, gates: dict[str, str]) -> Streams:
    found = given()
    own = {name: found[key] for name, key in gates.items()}
    segments = torch.zeros(ROWS, TOKENS, dtype=torch.int64)
    return Streams(found[q], found[k], found["v"], segments, DIM**-0.5, own)


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_flash_linear_attentions(name: str) -> None:
    mix, *told = OPERATORS[name]
    made = LayerSentence.parse(mix).mix
    assert made is not None
    for found in (made.parallel(streams(*told)), made.plain(streams(*told))):
        torch.testing.assert_close(found[1, 1, list(SHOWN)], answers()[name], rtol=1e-4, atol=1e-5)


def test_retention_has_the_papers_decays() -> None:
    made = LayerSentence.parse("retention").mix
    assert made is not None
    gates = made.build(Dims(8, HEADS, DIM), StreamShape(HEADS, HEADS, HEADS, DIM, DIM))(torch.zeros(ROWS, TOKENS, 8))
    found = made.parallel(streams("q", "k", {}).with_gates(**gates))
    torch.testing.assert_close(found[1, 1, list(SHOWN)], answers()["retention"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gla", "kda"])
@pytest.mark.parametrize("strength", [-1e-6, -3.0, -80.0])
def test_no_decay_is_too_strong_or_too_weak(name: str, strength: float) -> None:
    """A form that divides by products of decays gives inf after a few tokens of a strong one."""
    made = LayerSentence.parse(name).mix
    assert made is not None
    own = streams("unit_q", "unit_k", {"beta": "beta"})
    own = own.with_gates(decay=given()["decays"] * 0 + strength * given()["beta"][..., None])
    torch.testing.assert_close(made.parallel(own), made.plain(own), rtol=1e-3, atol=1e-4)


def test_a_long_text_stays_finite_where_dividing_by_decays_would_not() -> None:
    """Row 53: the memory after 100 000 tokens at a decay of 0.99, whose power is 0 in any floating-point type."""
    made = LayerSentence.parse("retention").mix
    assert made is not None
    tokens = 100_000
    v = torch.ones(1, 1, tokens, 2)
    decay = torch.full((1, 1, tokens, 1), 0.99).log()
    own = Streams(v, v, v, torch.zeros(1, tokens, dtype=torch.int64), 1.0, {"decay": decay})
    read = made.parallel(own)
    assert torch.full((1,), 0.99) ** tokens == 0
    torch.testing.assert_close(read[0, 0, -1], torch.full((2,), 2 / (1 - 0.99)), rtol=1e-3, atol=0)


def test_more_random_features_are_nearer_to_softmax() -> None:
    soft = LayerSentence.parse("").reader.parallel(streams("q", "k", {}))
    apart = [
        float((Performer(count=count).parallel(streams("q", "k", {})) - soft).norm() / soft.norm())
        for count in (8, 64, 512, 4096)
    ]
    assert apart == sorted(apart, reverse=True) and apart[-1] < 0.05, apart


def test_the_taylor_polynomial_has_273_features_of_16_channels() -> None:
    made = LayerSentence.parse("taylor").mix
    q, k = torch.randn(2, 40, 16, dtype=torch.float64)
    score = (q * k).sum(-1) / 4
    q, k = made.features(q, 0.25), made.features(k, 0.25)  # type: ignore[union-attr]
    assert q.shape[-1] == 273
    torch.testing.assert_close((q * k).sum(-1), 1 + score + score**2 / 2)


def test_multi_query_attention_is_multi_head_attention_with_tied_keys_and_values() -> None:
    """Row 177, and its bytes: those of one head."""
    dims = Dims(width=24, heads=4, head_dim=6)
    few, many = AttentionLayer("mqa", dims), AttentionLayer("heads", dims)
    own = few.state_dict()
    tied = {name: own[name].repeat(4, 1) for name in ("project.k.weight", "project.v.weight")}
    many.load_state_dict(own | tied)
    x = torch.randn(2, 9, 24)
    torch.testing.assert_close(few(x)[0], many(x)[0], rtol=1e-6, atol=1e-6)
    grown = [one.sentence.state_bytes(dims, 1, 2) - 8 for one in (few, many)]  # but for the segment of a token
    assert 4 * grown[0] == grown[1]


def test_a_hybrid_of_three_to_one_grows_a_quarter_as_fast() -> None:
    """Row 274: exactly 25 % of the KV of an all-MLA stack, plus a constant state."""
    dims = Dims(width=64, heads=4, head_dim=16)

    def grown(pattern: str) -> int:
        before, after = (sum(one.state_bytes(dims, n, 2) for one in parse_pattern(pattern, 8)) for n in (1000, 9000))
        return after - before

    assert 4 * grown("3*kda, mla(rank=16)") == grown("mla(rank=16)") > 0
