"""DREAM's drafter: gates at 0 switch cross-attention off, it learns from the sharpest layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import headwise
from headwise.decoding.base import Draft, Proposer, Written
from headwise.decoding.heads.base import Taught, made
from headwise.decoding.heads.dream import DreamHeads
from headwise.decoding.heads.train import states_of
from headwise.seams.transformers.cache import attach
from headwise.seams.transformers.sharpness import sharpest_states
from tests.decoding.test_generate import generated
from tests.engine.small import build, tokens


@pytest.fixture(scope="module")
def model() -> Any:
    return build(seed=0)


def drafter(model: Any) -> DreamHeads:
    attach(model)
    torch.manual_seed(0)
    heads = made("dream", model, 3)
    assert isinstance(heads, DreamHeads)
    return heads


def outputs(heads: DreamHeads, model: Any, steps: int = 3) -> torch.Tensor:
    """What each step gives for some places of a text: [steps, places, 2d]."""
    ids, _, states = states_of(model, tokens(40)[0])
    carry, found = heads.begin(states[:30], ids[1:31], torch.arange(5, 30)), []
    with torch.no_grad():
        for place in range(steps):
            out, carry = heads.step(place, carry, ids[6 + place : 31 + place])
            found.append(out)
    return torch.stack(found)


def test_gates_at_zero_make_cross_attention_a_no_op(model: Any) -> None:
    """Whatever its weights are; open gates show them."""
    heads = drafter(model)
    closed = outputs(heads, model)
    with torch.no_grad():
        for part in (heads.attend[1], heads.mlps[1]):
            for weight in part.parameters():
                weight.add_(torch.randn_like(weight))
    assert torch.equal(outputs(heads, model), closed)
    with torch.no_grad():
        heads.gates.fill_(0.5)
    assert not torch.allclose(outputs(heads, model), closed, atol=1e-2)


def test_guesses_see_no_later_token(model: Any) -> None:
    """A text cut behind a place gives the same guesses there."""
    heads = drafter(model)
    with torch.no_grad():
        heads.gates.fill_(0.5)
    ids, _, states = states_of(model, tokens(40)[0])
    long = heads.begin(states[:30], ids[1:31], torch.tensor([12]))
    short = heads.begin(states[:13], ids[1:14], torch.tensor([12]))
    for place in range(3):
        one, long = heads.step(place, long, ids[13 + place, None])
        other, short = heads.step(place, short, ids[13 + place, None])
        assert torch.allclose(one, other, atol=1e-5)


def test_the_sharpest_layer_is_that_of_least_entropy(model: Any) -> None:
    """Beside the weights that transformers' own eager attention gives."""
    attach(model)
    ids, layers = tokens(30)[0], range(2)
    found = sharpest_states(model, ids, layers)
    headwise.detach(model)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(input_ids=ids[None], output_attentions=True, output_hidden_states=True)
    entropies = torch.stack([torch.special.entr(out.attentions[layer][0]).sum(-1).mean(0) for layer in layers])
    best = entropies.argmin(0)
    want = torch.stack([out.hidden_states[layer + 1][0] for layer in layers])[best, torch.arange(30)]
    attach(model)
    assert set(best.tolist()) == {0, 1} and torch.allclose(found, want, atol=1e-4)


def test_what_the_middle_is_counts_in_the_loss(model: Any) -> None:
    heads = drafter(model)
    ids, logits, states = states_of(model, tokens(40)[0])
    out = outputs(heads, model, 1)[0]
    told = ids[7:32], logits[6:31], states[6:31]
    width = states.shape[1]
    none = heads.loss(0, out, Taught(*told))
    same, other = (heads.loss(0, out, Taught(*told, middle)) for middle in (out[:, width:], out[:, width:] + 1))
    assert float(same) == pytest.approx(float(none)) and float(other) > float(none) + 0.1


class Hearing(Proposer):
    """Guesses the last token again and again, and notes what it is shown."""

    reads_states = 7

    def __init__(self) -> None:
        self.shown: list[tuple[int, torch.Tensor]] = []

    def propose(self, written: Written) -> Draft:
        assert written.states is not None
        self.shown.append((len(written.ids), written.states.clone()))
        token = int(written.ids[-1])
        return Draft([token, token, token + 1], parents=[-1, 0, -1])


def test_a_proposer_is_shown_the_states_of_the_last_tokens(model: Any) -> None:
    hearing, cache = Hearing(), headwise.Cache(model)
    ids = generated(model, tokens(20), cache, hearing, max_new_tokens=30)
    _, _, states = states_of(model, ids[0])
    assert len(hearing.shown) > 5
    for count, shown in hearing.shown:
        assert torch.allclose(shown, states[count - 1 - len(shown) : count - 1], atol=1e-4)
        assert len(shown) == 7
