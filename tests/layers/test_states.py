"""What papers say of their running states, beside forms written otherwise and by other libraries' operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from headwise.layers.base import Dims, Mix, Streams
from headwise.layers.layer import AttentionLayer
from headwise.layers.project.cca import Compressed
from headwise.layers.sentence import LayerSentence, parse_pattern
from tests.layers.oracle import DIM, HEADS, ROWS, TOKENS, given

DIMS = Dims(width=24, heads=4, head_dim=6)


def mix(text: str) -> Mix:
    made = LayerSentence.parse(text).mix
    assert made is not None
    return made


def streams(**changed: Any) -> Streams:
    own = given() | changed
    learned = {name: one for name, one in changed.items() if name in ("agents", "codes")}
    segments = torch.zeros(*own["q"].shape[::2], dtype=torch.int64)
    return Streams(own["q"], own["k"], own["v"], segments, DIM**-0.5, learned=learned)


def read(text: str, **changed: Any) -> Tensor:
    return mix(text).parallel(streams(**changed))


def causal() -> Tensor:
    return torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()


def reads_of(text: str, q: Tensor, **changed: Any) -> Tensor:
    """The weights [rows, heads, tokens, tokens] of a mix that is linear in its values: what unit values read."""
    ones = torch.eye(TOKENS).expand(ROWS, HEADS, -1, -1)
    return read(text, q=q, v=ones, **changed)


@pytest.mark.parametrize("text", ["inline('relu')", "inline", "mala", "fastmax(1)", "fastmax", "aaren", "vq(5)"])
def test_weights_sum_to_one_and_none_lie_ahead(text: str) -> None:
    """Rows 56, 63, 220, 221 and 255."""
    changed = {"codes": torch.randn(HEADS, 5, DIM)} if text.startswith("vq") else {}
    weights = reads_of(text, given()["q"], **changed)
    limit = 1e-5 if text == "fastmax(1)" else 2e-6  # to its sum, which may be small, 1e-6 is added
    torch.testing.assert_close(weights.sum(-1), torch.ones(ROWS, HEADS, TOKENS), rtol=0, atol=limit)
    assert float(weights.masked_select(~causal()).abs().max()) < 1e-6


@pytest.mark.parametrize(("text", "told_apart"), [("inline('relu')", True), ("mala", True), ("linear('relu')", False)])
def test_longer_queries_are_told_apart(text: str, told_apart: bool) -> None:
    """Rows 56 and 63, and the linear attention that they amend: of queries whose features are twice as large."""
    q = given()["q"].abs() + 0.1  # whose elu + 1 is not twice itself, so that MALA is asked by the feature below
    twice = 2 * q if text != "mala" else 2 * (q + 1) - 1
    once, more = reads_of(text, q), reads_of(text, twice)
    assert (float((once - more).abs().max()) > 1e-3) == told_apart


def test_a_longer_query_looks_more_sharply_by_magnitude_aware_weights_alone() -> None:
    """Row 63: the ratio of the two largest weights grows; that of normalised linear attention stays."""
    q = given()["q"].abs()
    for text, grows in (("mala", True), ("linear", False)):
        ratios = []
        for factor in (1.0, 4.0):
            weights = reads_of(text, factor * (q + 1) - 1)[:, :, -1].topk(2, dim=-1).values
            ratios.append(weights[..., 0] / weights[..., 1])
        same = torch.allclose(ratios[0], ratios[1], rtol=1e-4)
        assert same != grows
        if grows:
            assert bool((ratios[1] > ratios[0]).all())


@pytest.mark.parametrize("order", [1, 2])
def test_fastmax_is_its_explicit_matrix_and_nears_softmax_for_small_scores(order: int) -> None:
    """Row 220. Its weights are positive; by a second derivation, of all pairs at once."""
    q, k = (x - x.mean(-1, keepdim=True) for x in (given()["q"], given()["k"]))
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT
    weights = (1 + scores + (scores.square() / 2 if order == 2 else 0)).masked_fill(~causal(), 0)
    expected = weights / weights.sum(-1, keepdim=True) @ given()["v"]
    torch.testing.assert_close(read(f"fastmax({order})"), expected, rtol=1e-4, atol=1e-5)
    assert float(weights.masked_select(causal()).min()) >= 0
    apart = []
    for scale in (1.0, 0.5, 0.25):
        small, exact = 1 + scale * scores + (scale * scores) ** 2 / 2 * (order == 2), (scale * scores).exp()
        apart.append(float((small - exact).abs().max() / exact.min()))
    assert apart == sorted(apart, reverse=True) and apart[2] < 0.2 * apart[0]


def test_agents_are_linear_attention_by_two_softmaxes() -> None:
    """Row 33, at the last token: softmax(Q A^T) (softmax(A K^T) V), with features of queries and keys."""
    agents = torch.randn(HEADS, 5, DIM)
    found = read("agents(5)", agents=agents)[:, :, -1]
    queries = (given()["q"][:, :, -1:] @ agents.mT * DIM**-0.5).softmax(-1)
    keys = (agents @ given()["k"].mT * DIM**-0.5).softmax(-1)
    torch.testing.assert_close(found, (queries @ keys @ given()["v"])[:, :, 0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found, (queries @ (keys @ given()["v"]))[:, :, 0], rtol=1e-5, atol=1e-6)


def test_aaren_is_the_softmax_of_its_query_whatever_the_blocks() -> None:
    """Row 255: all prefixes, in blocks of 1 to 64, after scores whose exponentials overflow."""
    query = torch.randn(1, HEADS, 1, DIM).expand(ROWS, -1, TOKENS, -1)
    for factor in (1.0, 60.0):
        scores = (query * factor @ given()["k"].mT * DIM**-0.5).masked_fill(~causal(), float("-inf"))
        expected = scores.softmax(-1) @ given()["v"]
        for block in (1, 7, 64):
            torch.testing.assert_close(read(f"aaren(block={block})", q=query * factor), expected, rtol=1e-4, atol=1e-5)
    held = LayerSentence.parse("aaren").state_bytes(DIMS, 10_000, 2)
    assert held == DIMS.heads * (DIMS.head_dim + 1) * 4 + 8


def test_vector_quantised_attention_is_softmax_over_quantised_keys() -> None:
    """Row 221, and dense softmax where every key has a code of its own; codes are never exp-overflowed."""
    codes = torch.randn(HEADS, 6, DIM)
    k = given()["k"]
    nearest = torch.cdist(k, codes.expand(ROWS, -1, -1, -1)).argmin(-1)
    quantised = codes.expand(ROWS, -1, -1, -1).gather(2, nearest[..., None].expand(-1, -1, -1, DIM))
    for factor in (1.0, 100.0):
        q = factor * given()["q"]
        scores = (q @ quantised.mT * DIM**-0.5).masked_fill(~causal(), float("-inf"))
        torch.testing.assert_close(
            read("vq(6)", q=q, codes=codes), scores.softmax(-1) @ given()["v"], rtol=1e-4, atol=1e-5
        )
    keys = codes.repeat(1, TOKENS // 6 + 1, 1)[None, :, :TOKENS].expand(ROWS, -1, -1, -1)
    dense = LayerSentence.parse("softmax").reader.parallel(streams(k=keys))
    torch.testing.assert_close(read("vq(6)", k=keys, codes=codes), dense, rtol=1e-4, atol=1e-4)


def test_lightnet_is_a_softmax_over_time_by_channel() -> None:
    """Row 310, whatever the size of its keys."""
    q, k, v = (given()[name] for name in "qkv")
    for factor in (1.0, 80.0):
        expected = torch.zeros_like(v)
        for t in range(TOKENS):
            weights = (factor * k[:, :, : t + 1]).softmax(2)
            expected[:, :, t] = torch.einsum("bhc,bhjc,bhje->bhe", F.silu(q[:, :, t]), weights, v[:, :, : t + 1])
        torch.testing.assert_close(read("lightnet", k=factor * k), expected, rtol=1e-4, atol=1e-4)


def test_titans_without_momentum_fades_and_corrects_as_gated_delta_does() -> None:
    """Row 232: beside the delta rule (its card's limit), with forgetting alone: one step after the other by hand."""
    own = given()
    gates = {"rate": own["beta"], "momentum": 0.5 * own["beta"], "forget": 0.1 + 0 * own["beta"]}
    found = mix("titans").parallel(streams().with_gates(**gates))
    still = mix("titans").parallel(streams().with_gates(**gates | {"momentum": 0 * own["beta"]}))
    assert not torch.allclose(found, still, atol=1e-2)
    memory, step, row = torch.zeros(DIM, DIM), torch.zeros(DIM, DIM), (1, 1)
    for t in range(TOKENS):
        key, value = F.normalize(own["k"][(*row, t)], dim=0), own["v"][(*row, t)]
        wanted = memory.clone().requires_grad_()
        loss = (key @ wanted - value).square().sum() / 2
        gradient = torch.autograd.grad(loss, wanted)[0]
        step = gates["momentum"][(*row, t)] * step - gates["rate"][(*row, t)] * gradient
        memory = (1 - gates["forget"][(*row, t)]) * memory + step
        expected = F.normalize(own["q"][(*row, t)], dim=0) @ memory * DIM**-0.5
        torch.testing.assert_close(found[(*row, t)], expected, rtol=1e-3, atol=1e-4)


def test_cca_is_two_convolutions_a_mean_and_a_norm() -> None:
    """Row 268, beside torch's convolutions of a whole text, and its bytes: two tokens of convolutions, few heads."""
    layer = AttentionLayer("cca(2, 1)", DIMS)
    made = layer.project
    assert isinstance(made, Compressed)
    x, dim = torch.randn(2, 9, 24), DIMS.head_dim
    with torch.no_grad():
        made.temperature.fill_(0.3)
        found = layer.streams(x, None, None, None)[0]
        before = made.qk(x).mT
        channel = F.conv1d(F.pad(before, (1, 0)), made.by_channel.T[:, None], groups=3 * dim)
        heads = made.by_head.permute(1, 3, 2, 0).flatten(0, 1)  # out channels of each head, in channels, taps
        mixed = F.conv1d(F.pad(channel, (1, 0)), heads, groups=3).mT.unflatten(-1, (3, dim))
        early = before.mT.unflatten(-1, (3, dim))
        q = mixed[:, :, :2] + (early[:, :, :2] + early[:, :, 2:]) / 2
        k = mixed[:, :, 2:] + (early[:, :, :2].mean(2, keepdim=True) + early[:, :, 2:]) / 2
        q, k = F.normalize(q, dim=-1) * dim**0.5, F.normalize(k, dim=-1) * dim**0.5 * torch.tensor(0.3).exp()
        v = torch.cat((made.v(x), F.pad(made.shifted(x), (0, 0, 1, 0))[:, :-1]), dim=-1)
    for one, expected in zip((found.q, found.k), (q, k), strict=True):
        torch.testing.assert_close(one, expected.transpose(1, 2), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.v[:, 0], v)
    grown = [LayerSentence.parse(text).state_bytes(DIMS, 1, 2) - LayerSentence.parse(text).state_bytes(DIMS, 0, 2) - 8
             for text in ("heads", "cca(2, 1)")]  # fmt: skip
    assert grown[0] == 4 * grown[1]


def test_diff_qkv_stores_what_its_heads_say() -> None:
    """Row 5: n_k d_k + n_v d_v numbers a token, 37.5 % below equal heads at 4 of keys and 16 of values."""
    dims = Dims(width=64, heads=32, head_dim=8)

    def grown(text: str) -> int:
        made = LayerSentence.parse(text)
        return made.state_bytes(dims, 1, 2) - made.state_bytes(dims, 0, 2) - 8

    assert grown("diff_qkv(4, 16)") == 2 * (4 * 8 + 16 * 8) == (1 - 0.375) * grown("gqa(16)")
    assert grown("diff_qkv(4, 16, key_dim=4)") == 2 * (4 * 4 + 16 * 8)
    assert grown("diff_qkv(4, 16, augmented=96)") == grown("diff_qkv(4, 16)")
    few, many = AttentionLayer("diff_qkv(4, 4)", DIMS), AttentionLayer("heads", DIMS)
    many.load_state_dict(few.state_dict())
    x = torch.randn(2, 9, 24)
    torch.testing.assert_close(few(x)[0], many(x)[0])


def test_a_hybrid_of_seven_to_one_grows_an_eighth_as_fast() -> None:
    """Row 31's decode cache."""
    dims = Dims(width=64, heads=4, head_dim=16)

    def grown(pattern: str) -> int:
        before, after = (sum(one.state_bytes(dims, n, 2) for one in parse_pattern(pattern, 8)) for n in (1000, 9000))
        return after - before

    assert 8 * grown("7*lightning, heads | rope") == grown("heads | rope") > 0
