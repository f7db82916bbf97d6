"""Slow tokens beside the sequence: shut, they change nothing; open, they are read by text alone, and as an oracle reads
them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headwise.errors import UnsupportedModel
from headwise.seams.transformers.forward import cache_argument
from headwise.seams.transformers.slow import SlowTokens
from headwise.vision.trials.host import host

WIDTH = 64


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """What a sequence is made of, slow tokens, and which places are of the text."""
    return drawn(2, 6, WIDTH), drawn(2, 9, WIDTH) * 3, torch.arange(6).expand(2, -1) >= 4


def opened(slow: SlowTokens, to: float = 1.0) -> SlowTokens:
    for reader in slow.readers:
        reader.opened.data.fill_(to)
    return slow


@torch.no_grad()
def test_a_shut_gate_changes_no_bit_and_an_open_one_the_text_alone() -> None:
    model, (embeds, seen, text) = host(9, 0), inputs()
    slow, plain = SlowTokens(model, (0, 1)), model(inputs_embeds=embeds, use_cache=False).logits
    with slow.reading(seen, text):
        assert torch.equal(model(inputs_embeds=embeds, use_cache=False).logits, plain)
    with opened(slow).reading(seen, text):
        changed = model(inputs_embeds=embeds, use_cache=False).logits
    assert torch.equal(changed[:, :4], plain[:, :4]), "places before the text never see them"
    assert not torch.allclose(changed[:, 4:], plain[:, 4:], atol=1e-3)
    assert torch.equal(model(inputs_embeds=embeds, use_cache=False).logits, plain), "outside nothing is left of it"


@torch.no_grad()
def test_text_reads_by_its_own_queries() -> None:
    """Of one layer, what the output projection is given is what was read before and what is computed here head by
    head."""
    model, (embeds, seen, text) = host(9, 0, layers=1), inputs()
    attention, slow = model.model.language_model.layers[0].self_attn, opened(SlowTokens(model, (0,)), 0.7)
    noted = dict[str, Tensor]()
    handles = [
        attention.q_proj.register_forward_hook(lambda module, given, out: noted.update(q=out)),
        attention.o_proj.register_forward_pre_hook(lambda module, given: noted.update(before=given[0])),
    ]
    with slow.reading(seen, text):
        handles.append(attention.o_proj.register_forward_pre_hook(lambda module, given: noted.update(after=given[0])))
        model(inputs_embeds=embeds, use_cache=False)
    for handle in handles:
        handle.remove()
    reader, (heads, dim) = slow.readers[0], (4, WIDTH // 4)
    keys, values = reader.keys_values(seen).chunk(2, -1)
    want = noted["before"].clone()
    gate = 0.7 * torch.tanh(reader.gate(noted["before"]))
    for row in range(2):
        for at in (4, 5):
            for head in range(heads):
                part = slice(head * dim, (head + 1) * dim)
                weights = (keys[row, :, part] @ noted["q"][row, at, part] / dim**0.5).softmax(0)
                want[row, at, part] += gate[row, at] * (weights @ values[row, :, part])
    torch.testing.assert_close(noted["after"], want, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_new_tokens_read_them_as_the_whole_text_does() -> None:
    model, (embeds, seen, text) = host(9, 0), inputs()
    slow = opened(SlowTokens(model, (1,)))
    with slow.reading(seen, text):
        whole = model(inputs_embeds=embeds, use_cache=False).logits
    with slow.reading(seen, text[:, :5]):
        begun = model(inputs_embeds=embeds[:, :5], use_cache=True)
    with slow.reading(seen, text):
        last = model(
            inputs_embeds=embeds[:, 5:], use_cache=True, **{cache_argument(type(model)): begun.past_key_values}
        ).logits
    torch.testing.assert_close(last[:, -1], whole[:, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", [(), (2,), (-1,)])
def test_layers_that_it_has_not_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedModel, match=r"has 2 decoder layers.*name layers that it has"):
        SlowTokens(host(9, 0), layers)
