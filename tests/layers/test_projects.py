"""Projections of papers beside what these write, which the laws of mixes do not see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from headwise.errors import RecipeError
from headwise.layers.base import Dims
from headwise.layers.layer import AttentionLayer

DIMS = Dims(width=24, heads=4, head_dim=6)


def made(sentence: str) -> Any:
    torch.manual_seed(3)
    return AttentionLayer(sentence, DIMS)


def inputs() -> torch.Tensor:
    return 2 * torch.randn(1, 9, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_nested_queries_and_keys_are_read_by_inner_attention(depth: int) -> None:
    """Row 205: with no weights more; depth 0 is plain attention to 1e-6."""
    nested, plain = made(f"nested({depth})"), made("")
    assert nested.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(nested.state_dict())
    streams = plain.streams(inputs(), None, None, None)[0]
    q, k = streams.q, streams.k
    hidden = torch.ones(9, 9).triu(1).bool()
    for _ in range(depth):
        weights = (q @ k.transpose(-1, -2) * 6**-0.5).masked_fill(hidden, float("-inf")).softmax(-1)
        q, k = weights @ q, weights @ k
    weights = (q @ k.transpose(-1, -2) * 6**-0.5).masked_fill(hidden, float("-inf")).softmax(-1)
    expected = plain.out(weights @ streams.v, inputs())
    torch.testing.assert_close(nested(inputs())[0], expected, rtol=1e-5, atol=1e-6)


def test_a_relational_head_reads_relations_and_symbols_alone() -> None:
    """Row 174: by the paper's sum over tokens, relation by relation."""
    layer, x = made("dual(2, relations=3, symbols=5)"), inputs()
    project, half = layer.project, 3
    streams = layer.streams(x, None, None, None)[0]
    weights = layer.mix.weights(streams)
    read = project.finish(layer.mix.parallel(streams), x)
    asked, keys = (one(x)[0].unflatten(-1, (2, 3, -1)) for one in (project.relation_q, project.relation_k))
    symbols = (project.template(x).softmax(-1) @ project.symbols)[0].unflatten(-1, (2, half))
    for head in range(2):
        found = torch.zeros(9, 6)
        for i in range(9):
            for j in range(i + 1):
                relation = (asked[i, head] * keys[j, head]).sum(-1)
                told = relation @ project.of_relations[head] + symbols[j, head] @ project.of_symbols[head]
                found[i] += weights[0, 2 + head, i, j] * told
        torch.testing.assert_close(read[0, 2 + head], found, rtol=1e-4, atol=1e-5)


def test_a_relational_head_does_not_see_what_no_map_of_it_does() -> None:
    """Row 174: a token moved in a direction that its queries, keys, relations and symbols are blind to."""
    dims = Dims(width=64, heads=2, head_dim=6)
    torch.manual_seed(0)
    layer: Any = AttentionLayer("dual(1, relations=1, symbols=3)", dims)
    project, x = layer.project, torch.randn(1, 9, 64)
    blind = (project.q, project.k, project.relation_q, project.relation_k, project.template)
    maps = torch.cat([one.weight for one in blind])
    moved = x.clone()
    moved[0, 4] += torch.linalg.svd(maps).Vh[-1] * 10
    both = [project.finish(layer.mix.parallel(layer.streams(one, None, None, None)[0]), one) for one in (x, moved)]
    torch.testing.assert_close(both[0][:, 1], both[1][:, 1], rtol=1e-4, atol=1e-5)
    assert (both[0][:, 0] - both[1][:, 0]).abs().max() > 0.1


def test_no_relational_heads_are_plain_attention() -> None:
    """Row 174: to 1e-6."""
    dual, plain = made("dual(0)"), made("")
    plain.load_state_dict(dual.state_dict())
    torch.testing.assert_close(dual(inputs())[0], plain(inputs())[0], rtol=1e-6, atol=1e-6)
    with pytest.raises(RecipeError, match="5 relational heads of 4"):
        made("dual(5)")
    with pytest.raises(RecipeError, match="half of 6 channels is no multiple of 2"):
        made("dual(2)")


@pytest.mark.parametrize(("sentence", "kv_heads"), [("mqa", 1), ("gqa(2)", 2), ("gqa(4)", 4)])
def test_shared_heads_are_heads_with_tied_keys_and_values(sentence: str, kv_heads: int) -> None:
    """Rows 177 and 233: to 1e-6, in a cache that is smaller by just the number of heads that share one."""
    shared, tied = made(f"{sentence} | rope"), made("rope")
    own = shared.state_dict()
    for name in ("project.k.weight", "project.v.weight"):
        heads = own[name].unflatten(0, (kv_heads, -1)).repeat_interleave(4 // kv_heads, 0)
        own[name] = heads.flatten(0, 1)
    tied.load_state_dict(own)
    found, expected = shared(inputs())[0], tied(inputs())[0]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    by_token = [one.sentence.state_bytes(DIMS, 9, 4) - one.sentence.state_bytes(DIMS, 8, 4) for one in (shared, tied)]
    assert (by_token[0] - 8) * 4 == (by_token[1] - 8) * kv_heads  # 8 bytes of both say which text a token is of


@pytest.mark.parametrize(("sentence", "queries", "kv_heads"), [("cca(2, 1)", 2, 1), ("cca(4, 2)", 4, 2)])
def test_a_compressed_latent_multiplies_and_stores_less_by_its_compression(
    sentence: str, queries: int, kv_heads: int
) -> None:
    """Row 268: products of queries with keys and of weights with values by that of queries, bytes by that of keys."""
    small, whole = made(f"{sentence} | rope"), made("rope")
    by_token = [one.sentence.state_bytes(DIMS, 9, 4) - one.sentence.state_bytes(DIMS, 8, 4) for one in (small, whole)]
    assert (by_token[0] - 8) * 4 == (by_token[1] - 8) * kv_heads
    counts = []
    for one in (small, whole):
        streams = one.streams(inputs(), None, None, None)[0]
        with FlopCounterMode(display=False) as counted:
            one.mix.parallel(streams)
        counts.append(counted.get_total_flops())
    assert counts[0] * 4 == counts[1] * queries
