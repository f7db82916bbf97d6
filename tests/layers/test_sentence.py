"""What a layer's sentence may say, and what is refused by name."""

from __future__ import annotations

import pytest
import torch

from headwise.errors import RecipeError, ShapeError
from headwise.layers.base import Dims
from headwise.layers.layer import AttentionLayer
from headwise.layers.sentence import LayerSentence, parse_pattern

DIMS = Dims(width=24, heads=4, head_dim=6)


def test_what_is_missing_is_plain_multi_head_attention() -> None:
    names = {slot: part and part.name for slot, part in LayerSentence.parse("").full.items()}
    plain = {"project": "heads", "position": "nope", "score": "dot", "normalise": "softmax", "out": "linear_out"}
    assert names == plain | {"pattern": None, "mix": None}
    assert LayerSentence.parse("softmax | heads").full == LayerSentence().full
    assert LayerSentence.parse(str(LayerSentence())).full == LayerSentence().full


def test_a_mix_brings_what_its_paper_has_it_with_unless_told_otherwise() -> None:
    names = {slot: part and part.name for slot, part in LayerSentence.parse("kda").full.items()}
    assert names == {
        "project": "short_conv", "position": "nope", "pattern": None, "score": None, "normalise": None, "mix": "kda",
        "out": "gated",
    }  # fmt: skip
    bare = LayerSentence.parse("linear_out | kda | heads").full
    assert (bare["project"].name, bare["out"].name) == ("heads", "linear_out")
    assert str(LayerSentence.parse("linear_out | kda(4) | heads")) == "heads | kda(4) | linear_out"


def test_a_pattern_is_repeated() -> None:
    found = parse_pattern("3*kda, mla(rank=64)", 8)
    assert [str(one) for one in found] == ["kda", "kda", "kda", "mla(64)"] * 2
    assert [str(one) for one in parse_pattern("gqa(2) | rope, 2 * linear", 3)] == ["gqa | rope", "linear", "linear"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("kda | delta", "'delta' and 'kda' are both mix parts; a layer has at most one of each slot"),
        ("softmax | kda", "'softmax' could weigh; leave one of the two out"),
        ("local(4) | gla", "'local' could choose; leave one of the two out"),
        ("dot | linear", "'dot' could score; leave one of the two out"),
        ("alibi | gla", "'alibi' adds to the score of a pair, and 'gla' reads a running state"),
        ("rope | linear", "'rope' turns queries and keys, and the features that 'linear' makes"),
        ("kdaa", "did you mean 'kda'?"),
        ("kda(ranks=3)", "kda has no parameter 'ranks'; did you mean 'rank'?"),
        ("linear('cos')", "feature must be 'elu' or 'relu', got 'cos'"),
        ("mla", "mla needs rank; give rank= a value"),
        ("kda |", "a part is empty"),
        ("kda, delta", "nothing can follow 'kda' but |"),
    ],
)
def test_a_sentence_that_means_nothing_is_refused(text: str, told: str) -> None:
    with pytest.raises(RecipeError) as refused:
        LayerSentence.parse(text)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("mla(rank=25)", "a latent of 25 channels is wider than the model's 24; give a rank of 24 or less"),
        ("mla(rank=4, rope=3) | rope", "3 channels cannot be turned in pairs"),
        ("mla(rank=4) | rope", "'mla(4)' has no channels that 'rope' could turn; give mla some, such as rope=64"),
        ("gqa(3)", "4 heads are no multiple of 3 heads of keys and values"),
        ("short_conv(key_heads=3)", "4 heads are no multiple of 3 heads of keys"),
    ],
)
def test_sizes_that_a_part_cannot_have_are_refused(text: str, told: str) -> None:
    with pytest.raises(RecipeError) as refused:
        AttentionLayer(text, DIMS)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("text", "layers", "told"),
    [
        ("3*kda, heads", 6, "a pattern of 4 layers, of which 6 are no multiple; give a multiple of 4 layers"),
        ("0*kda", 4, "0 is no number of layers before a *"),
        ("2.5*kda", 4, "2.5 is no number of layers before a *"),
        ("3 kda", 3, "3 is no number of layers before a *"),
        ("kda,, heads", 4, "',' stands where a name belongs"),
        ("kda heads", 4, "nothing can follow 'kda' but | or a comma"),
        ("2*kda | delta", 4, "both mix parts"),
    ],
)
def test_a_pattern_that_means_nothing_is_refused(text: str, layers: int, told: str) -> None:
    with pytest.raises(RecipeError) as refused:
        parse_pattern(text, layers)
    assert told in str(refused.value)


def test_tensors_that_are_not_its_own_are_refused() -> None:
    layer = AttentionLayer("kda", DIMS)
    with pytest.raises(ShapeError, match="w=24"):
        layer(torch.zeros(1, 3, 23))
    with pytest.raises(ShapeError, match="no tokens"):
        layer(torch.zeros(1, 0, 24))
    with pytest.raises(ShapeError, match=r"\[b=1 t=3\]"):
        layer(torch.zeros(1, 3, 24), segments=torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(ShapeError, match="take 0 to 3"):
        layer(torch.zeros(1, 3, 24))[1].truncated(4)
