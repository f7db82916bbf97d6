"""Second looks beside a cache, by brute force; and what is refused, by name, before anything is read."""

from __future__ import annotations

import pytest
import torch

import headwise
from headwise.decoders import Decoder, decoder, listed_heads
from headwise.engine.aside import attention_aside
from headwise.errors import HeadwiseError
from headwise.faithful.generate import write
from headwise.faithful.looks import Looks
from headwise.faithful.scores import divergence, entropy, plausible
from headwise.lens import ablated
from headwise.seams.transformers.beside import Beside, look_again
from headwise.seams.transformers.forward import forward
from tests.contract.drive import everything, small
from tests.contract.faithful.cases import CACHES, cache_of, model, sentence, small_detector, text  # noqa: F401

LEFT = torch.zeros(1, dtype=torch.int64)
PLAIN = [name for name in everything() if small(name).select is None]


@pytest.mark.parametrize("name", PLAIN)
def test_a_look_that_changes_nothing_is_the_first_one(name: str) -> None:
    own, ids, recipe = model(), text(count=100), small(name)
    cache = headwise.Cache(own, recipe)
    with torch.no_grad():
        forward(own, cache, ids)
        first = forward(own, cache, ids[:, :1]).logits[:, -1]
    assert torch.allclose(look_again(own, Beside(cache), ids[:, :1]), first, atol=0.05 if recipe.compress else 1e-4)


def test_masked_heads_are_those_of_an_ablated_model() -> None:
    """Over a prompt that was read whole, the masked look is a forward of the last token with the heads' output zero."""
    own, ids = model(), text()
    looks = Looks(own, cache_of(own), sentence("decore"))
    looks.read(ids, LEFT)
    other = headwise.Cache(own, "")
    with torch.no_grad():
        forward(own, other, ids[:, :-1])
        with ablated(own, [(0, 1), (2, 5)]):
            wanted = forward(own, other, ids[:, -1:]).logits[:, -1]
    assert torch.allclose(looks.masked([(0, 1), (2, 5)]), wanted, atol=1e-4)
    assert looks.cost.passes == 1 and looks.cost.read == ids.shape[1] and looks.cost.prompts == 0


def test_hidden_places_get_no_attention_in_the_named_layers_alone() -> None:
    own, ids = model(), text()
    cache = cache_of(own)
    Looks(own, cache, sentence("layercake")).read(ids, LEFT)
    places = torch.zeros(1, 40, dtype=torch.bool)
    places[:, 5:30] = True
    hidden, plain = Beside(cache, hidden={1: places}), Beside(cache)
    changed, first = look_again(own, hidden, ids[:, -1:]), look_again(own, plain, ids[:, -1:])
    assert torch.equal(hidden.queries[1][0], plain.queries[1][0])  # nothing changed below the layer
    assert not torch.equal(hidden.queries[2][0], plain.queries[2][0])
    assert not torch.allclose(changed, first)
    nothing = look_again(own, Beside(cache, hidden={1: ~places & places}), ids[:, -1:])
    assert torch.equal(nothing, first)


def test_attention_is_that_of_the_model() -> None:
    own, ids = model(), text()
    looks = Looks(own, cache_of(own), sentence("dagcd"))
    looks.read(ids, LEFT)
    headwise.detach(own)
    own.set_attn_implementation("eager")
    wanted = own(ids, output_attentions=True).attentions
    for layer in range(3):
        assert torch.allclose(looks.attention(layer), wanted[layer][:, :, -1], atol=1e-5)
    assert looks.cost.passes == 0


@pytest.mark.parametrize("recipe", CACHES)
def test_attention_sums_to_one_over_what_is_held(recipe: str) -> None:
    own, ids = model(), text()
    cache = cache_of(own, recipe)
    with cache.noting() as queries, torch.no_grad():
        forward(own, cache, ids)
    found = attention_aside(cache.session, 1, queries[1][0], queries[1][1].scoring)
    assert torch.allclose(found.sum(-1), torch.ones(1, 8), atol=1e-5)
    held = torch.zeros(40, dtype=torch.bool)
    held[cache.session.positions(1, 0, 0).long()] = True
    assert not found[0, :4, ~held].any()


def test_the_last_exit_is_the_model_and_earlier_ones_are_not() -> None:
    own, ids = model(), text()
    looks = Looks(own, cache_of(own), sentence("dola"))
    logits = looks.read(ids, LEFT)
    exits = looks.exits([1, 2, 3])
    assert torch.allclose(exits[:, -1], logits.log_softmax(-1), atol=1e-4)
    assert not torch.allclose(exits[:, 0], exits[:, -1], atol=0.1)


def test_without_the_context_is_a_prompt_that_never_had_it() -> None:
    own, ids = model(), text()
    looks = Looks(own, cache_of(own), sentence("cad"))
    looks.read(ids, LEFT)
    short = torch.cat((ids[:, :4], ids[:, 30:]), dim=1)
    assert torch.allclose(looks.without(looks.context), own(short).logits[:, -1], atol=1e-4)
    longer = torch.cat((ids, torch.tensor([[9]])), dim=1)
    looks.read(longer, LEFT)
    wanted = own(torch.cat((short, longer[:, -1:]), dim=1)).logits[:, -1]
    assert torch.allclose(looks.without(looks.context), wanted, atol=1e-4)
    assert (looks.cost.prompts, looks.cost.own, looks.cost.passes) == (14, 1, 0)


def test_writing_over_a_cache_is_generating() -> None:
    own, ids = model(), text()
    generated = own.generate(ids, max_new_tokens=6, do_sample=False,
                             custom_generate=headwise.contrast(own, cache_of(own), sentence("decore")))  # fmt: skip
    cache = cache_of(own)
    looks = Looks(own, cache, sentence("decore"))
    logits = headwise.prefill(own, cache, ids, None)
    assert looks.cost.passes == 0
    assert write(looks, logits, 6, ids).tolist() == generated[:, 40:].tolist()


def test_sampling_draws_what_the_decoder_says() -> None:
    """Chi-square of 1000 draws of the next token, against the decoder's probabilities; the model's own fail it."""
    own, ids = model(), text()
    looks = Looks(own, cache_of(own), made := sentence("decore", alpha=3.0))
    logits = looks.read(ids, LEFT)
    says, plain, drawn = looks.step(logits).exp()[0], logits.softmax(-1)[0], torch.zeros(128)
    torch.manual_seed(0)
    rows = ids.expand(100, -1)
    for _ in range(10):
        run = headwise.contrast(own, headwise.Cache(own, ""), made)
        out = own.generate(rows, max_new_tokens=1, do_sample=True, top_k=0, custom_generate=run)
        drawn += torch.bincount(out[:, -1], minlength=128)

    def misfit(wanted: torch.Tensor) -> float:
        often = wanted * 1000 >= 5
        seen = torch.cat((drawn[often], drawn[~often].sum()[None]))
        expected = 1000 * torch.cat((wanted[often], wanted[~often].sum()[None])).clamp(min=1e-4)
        return float(((seen - expected).square() / expected).sum() / len(seen))

    assert misfit(says) < 3 < misfit(plain)  # 3 is beyond one run in a thousand


def test_processors_come_after_the_decoder() -> None:
    own, ids = model(), text()
    run = headwise.contrast(own, cache_of(own), sentence("decore"))
    first = own.generate(ids, max_new_tokens=1, do_sample=False, custom_generate=run)[0, -1]
    run = headwise.contrast(own, cache_of(own), sentence("decore"))
    out = own.generate(ids, max_new_tokens=1, do_sample=False, custom_generate=run, bad_words_ids=[[int(first)]])
    assert out[0, -1] != first


def test_scores() -> None:
    one, other = torch.tensor([0.5, 0.5]).log(), torch.tensor([1.0, 1e-12]).log()
    assert float(entropy(one)) == pytest.approx(0.6931, abs=1e-3)
    assert float(divergence(one, one)) == pytest.approx(0.0, abs=1e-6)
    assert float(divergence(other, other.flip(0))) == pytest.approx(0.6931, abs=1e-3)
    assert plausible(torch.tensor([0.8, 0.1, 0.05]).log(), 0.1).tolist() == [True, True, False]


REFUSED = {
    "decore(named='9.0')": "layers 0 to 2",
    "decore(named='1.8')": "query heads 0 to 7",
    "layercake(marks='500')": "ids 0 to 127",
    "layercake(early=0.6, middle=0.5, marks='5')": "at least early",
    "decore(alpha=-1.0)": "greater than or equal to 0",
    "decore(heads=16)": "named='12.3 14.0'",
    "dola(layers='middle')": "'low' or 'high'",
    "decor": "decore",
    "decore(named='three')": "layer.head",
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_bad_settings_are_refused(wrong: str) -> None:
    own = model()
    with pytest.raises(HeadwiseError, match=REFUSED[wrong]):
        Looks(own, cache_of(own), decoder(wrong))


@pytest.mark.parametrize("recipe", ["quest(16)", "snapkv(0.5) | exact_topk(16)"])
def test_selections_are_refused(recipe: str) -> None:
    own = model()
    with pytest.raises(HeadwiseError, match="leave the select part out"):
        headwise.contrast(own, headwise.Cache(own, recipe), sentence("decore"))


def test_contexts_that_are_not_there_are_refused() -> None:
    own, ids = model(), text()
    with pytest.raises(HeadwiseError, match=r"Mark\('context'"):
        headwise.contrast(own, headwise.Cache(own, ""), "cad")
    marks = [headwise.Mark("context", 4, 90)]
    run = headwise.contrast(own, headwise.Cache(own, "", marks=marks), "cad")
    with pytest.raises(HeadwiseError, match="beyond the 40 tokens"):
        own.generate(ids, max_new_tokens=2, custom_generate=run)
    run = headwise.contrast(own, headwise.Cache(own, "", marks=[headwise.Mark("context", 0, 40)]), "cad")
    with pytest.raises(HeadwiseError, match="covers the whole prompt"):
        own.generate(ids, max_new_tokens=2, custom_generate=run)


def test_beams_and_other_models_are_refused() -> None:
    own, ids = model(), text()
    run = headwise.contrast(own, cache_of(own), sentence("decore"))
    with pytest.raises(HeadwiseError, match="num_beams=2"):
        own.generate(ids, max_new_tokens=2, num_beams=2, custom_generate=run)
    with pytest.raises(HeadwiseError, match="another model"):
        headwise.contrast(model(), cache_of(own), sentence("decore"))


def test_heads_are_read() -> None:
    assert listed_heads("12.3  0.1") == ((12, 3), (0, 1))
    assert isinstance(decoder("decore"), Decoder)
