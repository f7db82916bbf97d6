"""A prompt that the model reads again before it is evicted from: by whatever way it came, and with errors on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

import headwise
from headwise.choose import choose
from headwise.errors import ContextError, SessionError
from headwise.seams.transformers.drive import decode, feed, prefill
from headwise.seams.transformers.forward import cache_argument, forward
from headwise.seams.transformers.replay import open_prompt, read_once
from tests.contract.drive import kept
from tests.engine.small import build, tokens

CACHE = cache_argument(LlamaForCausalLM)
RECIPE = "kvzip(0.4, sinks=2, recent=4, ask='5 9 11', resume='7', then='3')"


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return build()


def heard(model: LlamaForCausalLM, prompt: torch.Tensor, piece: int) -> torch.Tensor:
    """Scores [layers, heads, n] by reading the prompt and each repetition of a piece as one text, and one softmax a
    query."""
    n = prompt.shape[1]
    found = torch.zeros(3, 2, n)
    for start in range(0, n, piece):
        before = [7, *prompt[0, start - 8 : start].tolist()] if start else [5, 9, 11]
        told = prompt[:, start : start + piece]
        again = torch.cat((torch.tensor([[*before, 3]]), told), dim=1)
        for call in read_once(model, torch.cat((prompt, again), dim=1)).calls:
            rivals = [*range(min(2, start)), *range(start, start + told.shape[1]), *range(n, n + again.shape[1])]
            first, last = min(2, start), min(2, start) + told.shape[1]
            queries = call.q[0, :, n:].double()
            scores = queries @ call.k[0, :, rivals].double().repeat_interleave(4, 0).mT * call.asked.scoring.scale
            later = torch.tensor(rivals) > torch.arange(n, n + again.shape[1])[:, None]
            weights = scores.masked_fill(later, -torch.inf).softmax(-1)[..., first:last]
            found[call.layer, :, start : start + told.shape[1]] = weights.unflatten(0, (2, 4)).amax((1, 2)).float()
    return found


def read(model: LlamaForCausalLM, ids: torch.Tensor, recipe: str = RECIPE, chunk: int | None = None) -> headwise.Cache:
    cache = headwise.Cache(model, recipe)
    prefill(model, cache, ids, chunk)
    return cache


@pytest.mark.parametrize("piece", [70, 71, 30])
def test_what_stays_is_what_the_repetition_attends_to(model: LlamaForCausalLM, piece: int) -> None:
    prompt = tokens(70)
    cache = read(model, prompt, RECIPE.replace("'3')", f"'3', piece={piece})"))
    scores, count = heard(model, prompt, piece), round(0.4 * 70)
    for layer in range(3):
        protect = torch.zeros(2, 70, dtype=torch.bool)
        protect[:, :2] = protect[:, -4:] = True
        expected = [one.tolist() for one in choose(scores[layer], count, protect)]
        assert [cache.session.positions(layer, 0, head).tolist() for head in range(2)] == expected


def test_what_stays_is_what_any_query_of_a_second_reading_attends_to_in_its_head_and_in_all(
    model: LlamaForCausalLM,
) -> None:
    prompt, count = tokens(70), round(0.4 * 70)
    cache = read(model, prompt, "kv_compose(0.4, sinks=0, recent=0)")
    for call in read_once(model, torch.cat((prompt, prompt), dim=1)).calls:
        keys = call.k[0].double().repeat_interleave(4, 0)
        scores = call.q[0, :, 70:].double() @ keys.mT * call.asked.scoring.scale
        weights = scores.masked_fill(torch.ones(70, 140).triu(71).bool(), -torch.inf).softmax(-1)[..., :70]
        own = weights.amax(1).unflatten(0, (2, 4)).mean(1)
        expected = [one.tolist() for one in choose(own + own.mean(0), count, torch.zeros(2, 70, dtype=torch.bool))]
        assert [cache.session.positions(call.layer, 0, head).tolist() for head in range(2)] == expected


def test_however_the_prompt_comes_the_same_stays_and_is_answered(model: LlamaForCausalLM) -> None:
    prompt = tokens(120)
    whole = read(model, prompt)
    expected = decode(model, whole.fork(), prefill(model, headwise.Cache(model, RECIPE), prompt, None), 12)
    ways = [read(model, prompt, chunk=40), headwise.Cache(model, RECIPE), headwise.Cache(model, RECIPE)]
    open_prompt(model, ways[1], prompt, read_once(model, prompt))
    written = model.generate(prompt, **{CACHE: ways[2]}, max_new_tokens=12, do_sample=False)
    assert torch.equal(written[:, 120:], expected)
    for cache in ways[:2]:
        assert kept(cache.session) == kept(whole.session)
    assert whole.nbytes < 0.6 * whole.session.dense_bytes()
    assert whole.session.ledger.peak_bytes >= whole.session.dense_bytes()


def test_rows_of_a_padded_batch_are_as_alone(model: LlamaForCausalLM) -> None:
    recipe = RECIPE.replace("'3')", "'3', piece=32)")
    rows = [tokens(90, seed=1), tokens(50, seed=2)]
    padded = torch.cat((torch.zeros(1, 40, dtype=torch.int64), rows[1]), dim=1)
    mask = torch.ones(2, 90, dtype=torch.int64)
    mask[1, :40] = 0
    cache = headwise.Cache(model, recipe)
    written = model.generate(
        torch.cat((rows[0], padded)), attention_mask=mask, **{CACHE: cache}, max_new_tokens=8, do_sample=False
    )
    for row, ids in enumerate(rows):
        alone = headwise.Cache(model, recipe)
        own = model.generate(ids, **{CACHE: alone}, max_new_tokens=8, do_sample=False)
        assert torch.equal(written[row, 90:], own[0, ids.shape[1] :])
        assert [layer[row] for layer in kept(cache.session)] == [layer[0] for layer in kept(alone.session)]


def test_a_second_prompt_is_read_again_alone_and_what_was_written_stays(model: LlamaForCausalLM) -> None:
    cache = read(model, tokens(100))
    before = kept(cache.session)
    decode(model, cache, feed(model, cache, tokens(10, seed=3)), 6)
    assert kept(cache.session) == [[[[*head, *range(100, 115)] for head in row] for row in layer] for layer in before]
    prefill(model, cache, tokens(60, seed=2), None)
    for layer in kept(cache.session):
        for head in layer[0]:
            assert len(head) == round(0.4 * 175)
            assert set(range(100, 115)) <= set(head)
            assert 0 < len([place for place in head if place >= 115]) < 60


def fail_at(model: LlamaForCausalLM, calls: int) -> torch.utils.hooks.RemovableHandle:
    """Let the middle layer raise when it is called for the so-many-th time."""
    left = [calls]

    def hook(*_: object) -> None:
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("planted")

    return model.model.layers[1].register_forward_pre_hook(hook)


@pytest.mark.parametrize("calls", [1, 2])
def test_an_error_while_it_is_read_again_takes_the_prompt_back(model: LlamaForCausalLM, calls: int) -> None:
    cache = read(model, tokens(80))
    before, expected = kept(cache.session), cache.fork()
    prefill(model, expected, tokens(60, seed=2), None)
    handle = fail_at(model, calls)
    with pytest.raises(RuntimeError, match="planted"):
        prefill(model, cache, tokens(60, seed=2), None)
    handle.remove()
    assert (cache.get_seq_length(), kept(cache.session)) == (80, before)
    prefill(model, cache, tokens(60, seed=2), None)
    assert kept(cache.session) == kept(expected.session)
    empty, handle = headwise.Cache(model, RECIPE), fail_at(model, calls)
    with pytest.raises(RuntimeError, match="planted"):
        prefill(model, empty, tokens(60), None)
    handle.remove()
    assert empty.get_seq_length() == 0


def test_a_prompt_left_in_the_middle_is_read_again_when_it_has_come(model: LlamaForCausalLM, tmp_path: Path) -> None:
    prompt, cache = tokens(120), headwise.Cache(model, RECIPE)
    with torch.no_grad():
        cache.total = 120
        for piece in (prompt[:, :50], prompt[:, 50:90]):
            forward(model, cache, piece)
        assert int(cache.session.lengths(0)[0, 0]) == 90
        cache.save(tmp_path / "half")
        cache.truncate(50)
        for one in (cache, cache.fork(), headwise.Cache.load(model, RECIPE, tmp_path / "half")):
            one.total = 120
            forward(model, one, prompt[:, one.get_seq_length() :])
            assert kept(one.session) == kept(read(model, prompt).session)


def test_what_cannot_be_read_again_is_refused_before_anything_is_stored(model: LlamaForCausalLM) -> None:
    cache = headwise.Cache(model, RECIPE)
    with torch.no_grad(), pytest.raises(SessionError, match="ids of 40 new tokens are not known; give the model input"):
        model(inputs_embeds=torch.randn(1, 40, 64), **{CACHE: cache})
    assert cache.get_seq_length() == 0
    with pytest.raises(
        ContextError, match="'kvzip' lets the model read 154 of them again, more than the 256 positions"
    ):
        prefill(model, cache, tokens(150), 50)
    assert cache.get_seq_length() == 0
    short = RECIPE.replace("'3')", "'3', piece=90)")
    assert len(read(model, tokens(150), short).session.positions(0, 0, 0)) == 60


def test_a_part_of_the_model_run_alone_leaves_evictions_that_the_next_step_asks_for(model: LlamaForCausalLM) -> None:
    cache = headwise.Cache(model, RECIPE)
    prefill(model, cache, tokens(40), None)
    with torch.no_grad():
        cache.reads(tokens(40, seed=2))
        model.model(input_ids=tokens(40, seed=2), **{CACHE: cache})
        with pytest.raises(SessionError, match="wait for it to be read again; run the model itself"):
            forward(model, cache, tokens(1))
