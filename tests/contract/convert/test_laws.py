"""Every law on every registered conversion, and on a wrong one for each; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from headwise.conversions import CONVERSIONS, Conversion, conversion
from headwise.convert.latent import singular
from headwise.convert.ways.mla import Mla, rotation
from headwise.errors import HeadwiseError
from headwise.seams.transformers.looked import Looked
from headwise.seams.transformers.weights import read_decoder
from tests.contract.convert.laws import LAWS, NAMES, small, source


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_law(name: str, law: Callable[[type[Conversion]], None]) -> None:
    law(CONVERSIONS.get(name))


def cut(cls: type[Mla], decoder: Any) -> Mla:
    """Nearly all of the latent is not all of it."""
    return cls(rank=15)


def wrong(change: Callable[[Any, Any], None]) -> Callable[..., Any]:
    """A build that `change`s what came out, or what was looked at."""

    def build(self: Mla, decoder: Any, looked: Any) -> Any:
        built = Mla.build(self, decoder, looked)
        change(built, looked)
        return built

    return build


def unlike(built: Any, looked: Any) -> None:
    """Reads a text of 37 tokens otherwise than a longer one."""
    built.lm_head.register_forward_hook(lambda module, given, said: said * (1.1 if said.shape[1] == 37 else 1.0))


def beside(built: Any, looked: Any) -> None:
    """Says what no weight of it does."""
    built.lm_head.register_forward_hook(lambda module, given, said: said * 1.1)


def spoils(built: Any, looked: Any) -> None:
    """Changes the source."""
    looked.model.lm_head.weight.data.mul_(1.001)


MUTANTS: dict[str, dict[str, Any]] = {
    "at_its_exact_setting_it_is_the_source": {"exact": classmethod(cut)},
    "a_cache_holds_the_numbers_that_are_told": {"cache_numbers": lambda self, decoder: 1},
    "token_by_token_over_a_cache_it_is_itself": {"build": wrong(unlike)},
    "its_folder_loads_in_transformers": {"build": wrong(beside)},
    "the_source_is_what_it_was": {"build": wrong(spoils)},
}


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_a_law_fails_on_its_mutant(law: Callable[[type[Conversion]], None]) -> None:
    weight = source(False).lm_head.weight.data.clone()
    with pytest.raises(AssertionError):
        law(type("Wrong", (Mla,), MUTANTS[law.__name__]))
    source(False).lm_head.weight.data.copy_(weight)


def test_a_rotation_commutes_with_rope_unless_frequencies_are_folded() -> None:
    decoder = read_decoder(small())
    keys = decoder.layers[0].k.double()
    angles = (decoder.frequencies.double() * 5).repeat(2)

    def turned(x: torch.Tensor) -> torch.Tensor:
        heads = x.unflatten(0, (2, 8))
        first, second = heads.chunk(2, 1)
        return (heads * angles.cos()[:, None] + torch.cat((-second, first), 1) * angles.sin()[:, None]).flatten(0, 1)

    for fold, same in ((1, True), (2, False)):
        turn = rotation(keys @ keys.T, 2, fold)
        torch.testing.assert_close(turn.T @ turn, torch.eye(16, dtype=torch.float64))
        assert torch.allclose(turned(turn.T @ keys), turn.T @ turned(keys), atol=1e-9) == same


def test_the_first_turned_head_holds_most() -> None:
    decoder = read_decoder(small())
    keys = decoder.layers[0].k.double()
    turn = rotation(keys @ keys.T, 2, 1)
    first, second = (turn.T @ keys).square().sum(1).chunk(2)
    own = keys.square().sum(1).chunk(2)
    assert first.sum() > max(own[0].sum(), own[1].sum()) > second.sum()


def test_all_singular_vectors_keep_values_and_the_first_channels_of_keys() -> None:
    decoder = read_decoder(small())
    layer = decoder.layers[0]
    made = singular(decoder, layer, torch.eye(32, dtype=torch.float64), 32, 4)
    keys, values = (one.unflatten(0, (2, 8)).repeat_interleave(2, 0) for one in (layer.k, layer.v))
    torch.testing.assert_close(made.kv_b @ made.kv_a[:32], torch.cat((keys[:, :4], values), 1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made.kv_a[32:], layer.k.unflatten(0, (2, 8)).mean(0)[4:])


def test_heads_are_pooled_or_kept() -> None:
    model = source(False)
    decoder = read_decoder(model)
    looked = Looked(model, torch.zeros(1, 4, dtype=torch.int64))
    kept = conversion("gqa(2)").build(decoder, looked).state_dict()
    assert all(torch.equal(kept[name], one) for name, one in model.state_dict().items())
    for start, expected in (
        ("mean", decoder.layers[1].k.unflatten(0, (2, 8)).mean(0)),
        ("first", decoder.layers[1].k[:8]),
    ):
        built = conversion(f"gqa(1, start={start!r})").build(decoder, looked)
        assert torch.equal(built.model.layers[1].self_attn.k_proj.weight, expected)


@pytest.mark.parametrize(
    ("sentence", "named"),
    [
        ("gqa(3)", "2 KV heads cannot be shared out among 3"),
        ("mla(rope=12)", "rope=12 is no multiple of a head's 8"),
        ("mla(rope=24)", "up to 16"),
        ("mla(rank=25, rope=8)", "a latent of 25 channels is wider"),
        ("mla(fold=3)", "cannot be folded by 3"),
        ("eco_mla(rank=33)", "a latent of 33 channels is wider"),
        ("eco_mla(rope=7)", "rope=7 is no even number of channels up to 8"),
        ("eco_mla(rope=10)", "up to 8"),
        ("mli", "did you mean"),
    ],
)
def test_what_cannot_be_is_refused(sentence: str, named: str) -> None:
    with pytest.raises(HeadwiseError, match=named):
        conversion(sentence).check(read_decoder(source(False)))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"attention_bias": True}, "biases of its projections"),
        ({"hidden_act": "gelu"}, "'gelu' as its activation"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "of the kind 'linear'"),
    ],
)
def test_a_model_with_what_would_be_lost_is_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(HeadwiseError, match=named):
        read_decoder(small(**change))


def test_every_card_says_what_its_conversion_does() -> None:
    for cls in CONVERSIONS.all().values():
        assert cls.card.title and cls.card.paper and cls.card.exact and cls.card.loads and cls.__doc__
