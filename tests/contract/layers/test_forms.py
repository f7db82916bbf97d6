"""The laws of layers: all forms of every registered part give the same, and states are what they are said to be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from headwise.errors import SessionError
from headwise.layer_parts import Limit
from headwise.layers import attend
from headwise.layers.base import State
from headwise.layers.sentence import LayerSentence
from tests.contract.layers.cases import (
    DIMS,
    LIMITS,
    MIXES,
    PACKED,
    PARTS,
    in_pieces,
    inputs,
    layer,
    segments,
    sentence,
    told,
)

every = pytest.mark.parametrize("name", PARTS)
CUTS = ((13,), (1,) * 13, (5, 1, 1, 6), (9, 4))


def near(found: Tensor, expected: Tensor, limit: float = 2e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=limit, atol=limit)


def tensors(state: Any) -> list[Tensor]:
    """All tensors of a state, those of its parts as well."""
    if not isinstance(state, State):
        return []
    own = [[one] if isinstance(one, Tensor) else tensors(one) for one in vars(state).values() if one is not None]
    return [tensor for each in own for tensor in each]


@every
def test_a_text_in_chunks_or_steps_is_the_text_at_once(name: str) -> None:
    made, x, own = layer(name), inputs(), segments()
    whole, _ = made(x, None, own)
    for cuts in CUTS[1:]:
        near(in_pieces(made, x, own, cuts)[0], whole)


@every
def test_a_layer_equals_its_plain_form(name: str) -> None:
    made = layer(name)
    near(made(inputs(), None, segments())[0], made.plain(inputs(), segments()))
    streams, _ = made.streams(inputs(), None, segments(), None)
    near(made.mix.parallel(streams), made.mix.plain(streams))  # an output that is normed would hide a factor


@every
@pytest.mark.parametrize("cuts", [CUTS[0], CUTS[2]], ids=["whole", "pieces"])
def test_gradients_equal_those_of_the_plain_form(name: str, cuts: tuple[int, ...]) -> None:
    made, pull = layer(name), inputs(dtype=torch.float32).flip(0)

    def gradients(plain: bool) -> list[Tensor]:
        x = inputs().requires_grad_()
        out = made.plain(x, segments()) if plain else in_pieces(made, x, segments(), cuts)[0]
        return list(torch.autograd.grad((out * pull).sum(), [x, *made.parameters()]))

    for found, expected in zip(gradients(False), gradients(True), strict=True):
        near(found, expected, 2e-4)


@every
def test_no_token_is_changed_by_a_later_one(name: str) -> None:
    made, x, later = layer(name), inputs(), inputs()
    later[:, 7:] += 1
    near(made(later)[0][:, :7], made(x)[0][:, :7], 1e-6)
    assert not torch.allclose(made(later)[0][:, 7:], made(x)[0][:, 7:], atol=1e-3)


@every
def test_padded_and_packed_texts_are_as_alone(name: str) -> None:
    made, x = layer(name), inputs()
    together, _ = made(x, None, segments())
    for row, lengths in enumerate(PACKED):
        start = lengths[0]
        for count in lengths[1:]:
            own = slice(start, start := start + count)
            near(together[row, own], made(x[row : row + 1, own])[0][0])


@every
def test_a_state_holds_the_bytes_that_are_said(name: str) -> None:
    made, element = layer(name), 4
    found = [in_pieces(made, inputs(n), torch.zeros(3, n, dtype=torch.int64), (n - 1, 1))[1].nbytes for n in (9, 40)]
    assert found == [3 * made.sentence.state_bytes(DIMS, n, element) for n in (9, 40)]
    reading = made.sentence.mix or made.sentence.pattern
    constant = reading is not None and reading.card.state == "constant"
    assert constant == (found[0] == found[1])
    assert constant or made.sentence.mix is None


@every
def test_bfloat16_is_near_float32(name: str) -> None:
    made, x, own = layer(name, dtype=torch.bfloat16), inputs(dtype=torch.bfloat16), segments()
    exact, _ = layer(name, dtype=torch.bfloat16).float()(x.float(), None, own)
    for cuts in (CUTS[0], CUTS[2]):
        found, state = in_pieces(made, x, own, cuts)
        assert found.dtype == torch.bfloat16
        assert (found.float() - exact).norm() < 0.03 * exact.norm()
        if made.sentence.mix is not None:
            assert {one.dtype for one in tensors(state.mix) if one.is_floating_point()} == {torch.float32}


@every
def test_a_state_is_a_value(name: str) -> None:
    made, x, own = layer(name), inputs(), segments()
    _, state = in_pieces(made, x[:, :8], own[:, :8], (8,))
    before = [one.clone() for one in tensors(state)]
    first, _ = made(x[:, 8:9], state, own[:, 8:9])
    rest, _ = made(x[:, 8:], state, own[:, 8:])
    assert all(torch.equal(one, kept) for one, kept in zip(tensors(state), before, strict=True))
    near(rest[:, :1], first)
    order = torch.tensor([2, 0, 0])
    near(made(x[order, 8:9], state.rows(order), own[order, 8:9])[0], first[order])


@every
def test_tokens_are_taken_back_exactly_or_not_at_all(name: str) -> None:
    made, x, own = layer(name), inputs(), segments()
    _, early = in_pieces(made, x[:, :8], own[:, :8], (8,))
    _, late = in_pieces(made, x[:, :11], own[:, :11], (8, 3))
    try:
        found = late.truncated(3)
    except SessionError as refused:
        assert "keep the state from before them" in str(refused)
        assert made.sentence.mix is not None or name in ("short_conv", "cca") or made.sentence.pattern.forgets
        return
    assert made.sentence.mix is None and found.tokens == early.tokens
    for one, expected in zip(tensors(found), tensors(early), strict=True):
        assert torch.equal(one, expected)


@every
def test_fresh_memory_is_never_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, x, own = layer(name), inputs(), segments()
    expected, _ = in_pieces(made, x, own, CUTS[2])
    torch.use_deterministic_algorithms(True)  # under which torch.empty is full of NaN
    try:
        found, _ = in_pieces(made, x, own, CUTS[2])
    finally:
        torch.use_deterministic_algorithms(False)
    near(found, expected)


@pytest.mark.parametrize("name", MIXES)
def test_blocks_of_any_size_give_the_same(name: str) -> None:
    made = layer(name, block=1)
    streams, _ = made.streams(inputs(37), None, None, None)
    expected = made.mix.parallel(streams)
    for block in (3, 16, 24, 64):
        near(layer(name, block=block).mix.parallel(streams), expected, 1e-4)


@every
def test_queries_in_blocks_are_all_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, x, own = layer(name), inputs(), segments()
    expected, _ = made(x, None, own)
    monkeypatch.setattr(attend, "NUMBERS", 3 * DIMS.heads * 13 * 64 * 2)  # 2 queries of a network, 128 of a product
    small, _ = made(x, None, own)
    monkeypatch.setattr(attend, "NUMBERS", 1)  # one query
    for found in (small, made(x, None, own)[0]):
        near(found, expected)


@pytest.mark.parametrize("case", LIMITS, ids=told)
def test_limit_cases_are_the_other_layer(case: tuple[str, Limit]) -> None:
    name, limit = case
    made = layer(limit.of or name)
    streams = limit.change(made.streams(inputs(), None, segments(), None)[0])
    near(made.mix.parallel(streams), LayerSentence.parse(limit.other).reader.plain(streams), 1e-5)


@every
def test_a_sentence_is_read_back(name: str) -> None:
    made = sentence(name)
    assert LayerSentence.parse(str(made)) == made
