"""What papers say of their trained patterns, and patterns beside other parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from headwise.errors import RecipeError, SessionError
from headwise.layers.base import Dims, Streams
from headwise.layers.layer import AttentionLayer
from headwise.layers.sparse_attend import SparseAttend
from headwise.models.host import HeadwiseForCausalLM, HostConfig

DIMS = Dims(width=24, heads=4, head_dim=6)
ROW = torch.zeros(1, 40, dtype=torch.int64)


def made(sentence: str, dims: Dims = DIMS) -> AttentionLayer:
    torch.manual_seed(3)
    layer = AttentionLayer(sentence, dims)
    with torch.no_grad():
        for one in layer.parameters():
            one.mul_(2).add_(torch.randn_like(one), alpha=0.1)
    return layer


def shown(layer: AttentionLayer, tokens: int = 40) -> tuple[SparseAttend, Streams]:
    assert isinstance(layer.mix, SparseAttend)
    torch.manual_seed(5)
    return layer.mix, layer.streams(torch.randn(1, tokens, DIMS.width), None, None, None)[0]


def weights(sentence: str) -> Tensor:
    mix, streams = shown(made(sentence))
    return mix.weights(streams)[0]


TOGETHER = (
    "gqa(2) | rope | sharded(2, local=1, stride=3)",
    "gqa(2) | rope | dynamic_mask(4)",
    "mqa | rope | local(3)",
    "gqa(2) | here_or_all(3) | ssmax | sigmoid",
    "mla(5, rope=4) | rope | strided(2)",
    "mla(5, rope=4) | rope | landmark(3, retrieve=1)",
    "short_conv | alibi | shifted(4, sinks=1) | sink_softmax",
    "cope | local(4) | qk_norm | threshold",
    "t5_bias | dynamic_mask(3) | selective",
    "gqa(2) | rope | combiner(3) | gated_heads",
    "rope | strided(2) | routed_heads(1, top=2)",
)


@pytest.mark.parametrize("sentence", TOGETHER)
def test_patterns_go_with_other_parts(sentence: str) -> None:
    """By steps as at once and as in the plain form, and as many bytes as are said."""
    layer = made(sentence)
    x = torch.randn(2, 11, DIMS.width, generator=torch.Generator().manual_seed(2))
    own = torch.tensor([[0] * 4 + [1] * 7, [0] * 11])
    whole, _ = layer(x, None, own)
    torch.testing.assert_close(layer.plain(x, own), whole, rtol=1e-4, atol=1e-4)
    found, state = [], None
    for piece, segment in zip(x.split(2, 1), own.split(2, 1), strict=True):
        out, state = layer(piece, state, segment)
        found.append(out)
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-4, atol=1e-4)
    last = layer(x[:1, 6:], layer(x[:1, :6])[1])[1]
    assert last.nbytes == layer.sentence.state_bytes(DIMS, 11, 4)


@pytest.mark.parametrize("sentence", ["landmark(3)", "landmark(3, retrieve=2)", "combiner(4)", "here_or_all(3)"])
def test_weights_sum_to_one(sentence: str) -> None:
    """Rows 54 and 51: within 1e-6."""
    assert (weights(sentence).sum(-1) - 1).abs().max() < 1e-6


def test_landmarks_have_no_weight_of_their_own_and_only_found_blocks_are_read() -> None:
    """Row 54: beyond its own block a query reads the tokens of as many blocks as are retrieved."""
    far = weights("landmark(3, retrieve=2)")[:, 37]
    marks = torch.arange(40) % 4 == 3
    assert (far[:, marks & (torch.arange(40) < 36)] == 0).all()
    for head in far:
        blocks = {place // 4 for place in head[:36].nonzero()[:, 0].tolist()}
        assert len(blocks) == 2
        assert all((head[4 * one : 4 * one + 3] > 0).all() for one in blocks)


def test_a_combiner_reads_every_token() -> None:
    """Row 51: the weight of every token before a query is above 0, and regions are weighed alike by all queries."""
    found = weights("combiner(4)")
    assert (found[:, torch.ones(40, 40).tril().bool()] > 0).all()
    inner = found[:, 20:, 4:8] / found[:, 20:, 4:8].sum(-1, keepdim=True)
    torch.testing.assert_close(inner, inner[:, :1].expand_as(inner), rtol=1e-4, atol=1e-6)


def test_shards_cover_the_text_and_are_never_asked_for_again() -> None:
    """Row 4: the union over `stride` heads is every block; a head holds its own shard and its neighbours."""
    found = weights("rope | sharded(2, local=1, stride=4)") > 0
    assert torch.equal(found.any(0), torch.ones(40, 40).tril().bool())
    layer = made("rope | sharded(2, local=1, stride=4)")
    _, state = layer(torch.randn(1, 40, DIMS.width))
    assert state.mix.keys.shape[2] <= 40 // 4 + 4  # type: ignore[attr-defined]


def test_strides_cover_the_text() -> None:
    """Row 176."""
    found = weights("rope | strided(4)") > 0
    assert torch.equal(found.any(0), torch.ones(40, 40).tril().bool())
    assert int(found.sum()) < 0.32 * 4 * 40 * 41 / 2


@pytest.mark.parametrize("width", [1, 4, 9])
def test_a_dynamic_mask_reads_and_holds_its_width(width: int) -> None:
    """Row 273: in every row, and after any number of tokens."""
    counts = (weights(f"dynamic_mask({width})") > 0).sum(-1)
    assert torch.equal(counts, torch.arange(1, 41).clamp(max=width).expand_as(counts))
    layer = made(f"dynamic_mask({width})")
    _, state = layer(torch.randn(1, 40, DIMS.width))
    assert state.mix.keys.shape[2] == width  # type: ignore[attr-defined]


def test_shifted_groups_see_no_later_token_and_half_of_the_shift_is_taken_back() -> None:
    """Row 41: half of the heads is shifted by LongLoRA, a quarter with half of these returned."""
    plain, back = (weights(f"shifted(8, back={share}, sinks=0)") > 0 for share in (0.0, 0.5))
    straight = plain[0]
    assert [torch.equal(one, straight) for one in plain] == [True, True, False, False]
    assert [torch.equal(one, straight) for one in back] == [True, True, True, False]
    assert not plain[:, torch.ones(40, 40).triu(1).bool()].any()
    assert (weights("shifted(8, sinks=2)")[:, :, 0] > 0).all()


def test_closed_gates_read_neighbours_and_open_ones_everything() -> None:
    """Row 210: pairs are counted by each gate's choice."""
    layer: Any = made("here_or_all(3)")
    for opening, share in ((50.0, 1.0), (-50.0, (1 + 2 + 3 * 38) / 820)):
        with torch.no_grad():
            layer.gates.by_name["aha_gate"].open.fill_(opening)
        mix, streams = shown(layer)
        read, causal = mix.pairs(streams)
        assert causal == 4 * 820 and abs(read / causal - share) < 1e-9


def test_pairs_of_some_layers_in_full_are_few() -> None:
    """Row 253: of 4 layers of 24 in full and a short span, at 4096 tokens more than 70 % of the pairs are spared."""
    length, span = 4096, 256
    full, near = length * (length + 1) // 2, span * length - span * (span - 1) // 2
    assert 1 - (4 * full + 20 * near) / (24 * full) > 0.7
    mix, streams = shown(made("local(5)"))
    assert mix.pairs(streams)[0] == 4 * (5 * 40 - 10)


@pytest.mark.parametrize(
    ("sentence", "own"),
    [
        ("sharded(2, local=1, stride=4, dense=1)", [[0] * 9, [0] * 9]),  # one head holds everything
        ("dynamic_mask(20)", [[0] * 5 + [1] * 4, [0] * 9]),  # one row holds everything
    ],
)
def test_what_was_given_up_somewhere_is_never_missed_in_silence(sentence: str, own: list[list[int]]) -> None:
    """States whose largest head or row gave up nothing cannot go back either."""
    layer = made(sentence)
    _, state = layer(torch.randn(2, 9, DIMS.width), None, torch.tensor(own))
    assert state.mix.keys.shape[2] == 9  # type: ignore[attr-defined]
    with pytest.raises(SessionError, match="keep the state from before them"):
        state.truncated(6)


def test_a_pattern_that_weighs_by_itself_refuses_another_normalisation() -> None:
    with pytest.raises(RecipeError, match="'landmark' makes its weights by softmaxes of its own, and 'sigmoid'"):
        AttentionLayer("landmark(3) | sigmoid", DIMS)


def test_a_position_that_adds_is_asked_about_all_keys() -> None:
    layer = made("alibi | local(3)")
    _, state = layer(torch.randn(1, 12, DIMS.width))
    assert state.mix.keys.shape[2] == 12  # type: ignore[attr-defined]


@pytest.mark.parametrize("sentence", ["rope | dynamic_mask(5)", "rope | landmark(3, retrieve=1), rope | local(4)"])
def test_a_host_generates_by_steps_what_it_reads_at_once(sentence: str) -> None:
    torch.manual_seed(0)
    model = HeadwiseForCausalLM(HostConfig(sentence, vocab_size=20, hidden_size=16, num_hidden_layers=2)).eval()
    with torch.no_grad():
        for one in model.parameters():
            one.add_(torch.randn_like(one), alpha=0.3)
    ids = torch.randint(0, 20, (2, 9))
    stepped = model.generate(ids, max_new_tokens=6, do_sample=False)
    whole = ids
    for _ in range(6):
        whole = torch.cat((whole, model(whole).logits[:, -1:].argmax(-1)), 1)
    assert torch.equal(stepped, whole)
