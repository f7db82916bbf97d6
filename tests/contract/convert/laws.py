"""The laws of every conversion, as functions of its class, and what they are tried on: a small random Llama."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import headwise
from headwise.conversions import CONVERSIONS, Conversion
from headwise.seams.transformers.forward import generation_argument
from headwise.seams.transformers.looked import Looked
from headwise.seams.transformers.weights import read_decoder

NAMES = tuple(CONVERSIONS.all())


def small(**other: Any) -> LlamaForCausalLM:
    """A Llama of two layers with two KV heads for four of queries."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=512, **other,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for one in model.parameters():  # so that attention looks at something
            one.mul_(6.0 if one.dim() > 1 else 1.0)
    return model


@cache
def source(equal: bool) -> LlamaForCausalLM:
    """The model that is converted; `equal`: its KV heads are."""
    model = small()
    for layer in model.model.layers if equal else ():
        for linear in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            linear.weight.data[8:] = linear.weight.data[:8]
    return model


def ids(tokens: int = 40) -> Tensor:
    return torch.randint(64, (2, tokens), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def logits(model: Any, given: Tensor, **how: Any) -> Tensor:
    found: Tensor = model(input_ids=given, **how).logits
    return found


def near(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def made(cls: type[Conversion]) -> tuple[Conversion, Any]:
    """The conversion at its exact setting, and what it makes."""
    model = source(cls.equal_heads)
    decoder = read_decoder(model)
    one = cls.exact(decoder)
    one.check(decoder)
    return one, one.build(decoder, Looked(model, ids(64)))


def at_its_exact_setting_it_is_the_source(cls: type[Conversion]) -> None:
    near(logits(made(cls)[1], ids()), logits(source(cls.equal_heads), ids()))


def a_cache_holds_the_numbers_that_are_told(cls: type[Conversion]) -> None:
    one, built = made(cls)
    layers = headwise.Cache(built).plan.geometry.layers
    assert sum(each.kv_heads * each.token_width for each in layers) == one.cache_numbers(
        read_decoder(source(cls.equal_heads))
    )


def token_by_token_over_a_cache_it_is_itself(cls: type[Conversion]) -> None:
    built = made(cls)[1]
    held = {generation_argument(): headwise.Cache(built)}
    found = [logits(built, ids()[:1, :37], **held)]
    found += [logits(built, ids()[:1, place : place + 1], **held) for place in range(37, 40)]
    near(torch.cat(found, 1), logits(built, ids()[:1]))


def its_folder_loads_in_transformers(cls: type[Conversion]) -> None:
    built, folder = made(cls)[1], Path(mkdtemp())
    built.save_pretrained(folder)
    near(logits(AutoModelForCausalLM.from_pretrained(folder), ids()), logits(built, ids()))


def the_source_is_what_it_was(cls: type[Conversion]) -> None:
    before = logits(source(cls.equal_heads), ids())
    made(cls)
    assert torch.equal(logits(source(cls.equal_heads), ids()), before)


LAWS: tuple[Callable[[type[Conversion]], None], ...] = (
    at_its_exact_setting_it_is_the_source,
    a_cache_holds_the_numbers_that_are_told,
    token_by_token_over_a_cache_it_is_itself,
    its_folder_loads_in_transformers,
    the_source_is_what_it_was,
)
