"""Masked-diffusion sampling: through a cache as without one, self-speculation and adaptive blocks."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch

import headwise
from headwise.decoding.diffusion.blocks import Adaptive, Blocks, Fixed
from headwise.decoding.diffusion.fill import Filled, Filling, fill
from headwise.errors import ContextError, FileError, HeadwiseError, SessionError
from headwise.models.diffusion import Recipe, diffusion_host, loss_of, noised
from headwise.models.diffusion_texts import END, HELD, MASK, NEWLINE, decode, texts
from headwise.seams.transformers.drive import prefill
from headwise.seams.transformers.window import look_at

FILLING = Filling(length=24, mask=MASK, end=END, window=12)
RECIPES = ("", "int8", "streaming(0.5)", "snapkv(0.5) | int8")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> headwise.PreTrainedModel:
    """A tiny host after a few steps of training: its looks differ from place to place."""
    recipe = Recipe(width=32, depth=2, heads=2, steps=40, batch=8)
    return diffusion_host(recipe, lambda what, done, total: None, tmp_path_factory.mktemp("host"))


def prompts(count: int) -> list[torch.Tensor]:
    return [torch.tensor([texts("sums").example(HELD + one).prompt]) for one in range(count)]


def filled(
    host: headwise.PreTrainedModel, ids: torch.Tensor, filling: Filling, blocks: Blocks, recipe: str = ""
) -> Filled:
    cache = headwise.Cache(host, recipe)
    prefill(host, cache, ids, None)
    return fill(host, cache, filling, blocks)


def by_hand(host: headwise.PreTrainedModel, text: list[int], states: torch.Tensor) -> torch.Tensor:
    """What each state of a window gives behind a text, by one forward with a mask and no cache: [s, t, vocab]."""
    headwise.detach(host)
    found = []
    for state in states:
        ids = torch.tensor([text + state.tolist()])
        sight = torch.ones(ids.shape[1], ids.shape[1]).tril().bool()
        sight[len(text) :, len(text) :] = True
        mask = torch.zeros(1, 1, *sight.shape).masked_fill(~sight, torch.finfo(torch.float32).min)
        with torch.no_grad():
            found.append(host(input_ids=ids, attention_mask=mask, use_cache=False).logits[0, len(text) :])
    headwise.attach(host)
    return torch.stack(found)


def test_a_window_behind_a_cache_reads_as_one_forward_over_everything(host: headwise.PreTrainedModel) -> None:
    ids, cache = prompts(1)[0], headwise.Cache(host)
    prefill(host, cache, ids, None)
    before = cache.report()
    states = torch.full((3, 10), MASK)
    states[1, 2], states[2, 5:] = 7, 9
    got = look_at(host, cache, states)
    assert cache.get_seq_length() == ids.shape[1] and cache.report() == before, "nothing is stored"
    assert torch.allclose(got, by_hand(host, ids[0].tolist(), states), atol=1e-4)


def stepwise(host: headwise.PreTrainedModel, ids: torch.Tensor, size: int) -> list[int]:
    """LLaDA's sampling with one token a look, written out: no cache, no block before its turn."""
    text, answer = ids[0].tolist(), list[int]()
    while len(answer) < FILLING.length and END not in answer:
        window = torch.full((min(FILLING.window, FILLING.length - len(answer)),), MASK)
        for _ in range(min(size, len(window))):
            logits = by_hand(host, text + answer, window[None])[0]
            logits[:, MASK] = -torch.inf
            sure, words = logits.softmax(-1).max(-1)
            sure[window != MASK] = -1
            place = int(sure[:size].argmax())
            window[place] = words[place]
        answer += window[:size].tolist()
    return answer


def test_an_answer_is_that_of_plain_sampling_without_a_cache(host: headwise.PreTrainedModel) -> None:
    for ids in prompts(4):
        found = filled(host, ids, FILLING, Fixed(6))
        assert found.ids == stepwise(host, ids, 6)
        assert found.looks == len(found.ids), "one token a look"


@pytest.mark.parametrize("recipe", RECIPES)
def test_self_speculation_writes_the_same_in_fewer_looks(host: headwise.PreTrainedModel, recipe: str) -> None:
    fewer = 0
    for ids in prompts(6):
        plain = filled(host, ids, FILLING, Fixed(8), recipe)
        for drafts in (1, 2, 3, 8):
            found = filled(host, ids, replace(FILLING, drafts=drafts), Fixed(8), recipe)
            assert (found.ids, found.blocks) == (plain.ids, plain.blocks), drafts
            assert found.looks == plain.looks if drafts == 1 else found.looks <= plain.looks
            fewer += plain.looks - found.looks
    assert fewer > 0


def test_adaptive_blocks_that_are_never_sure_are_fixed_ones(host: headwise.PreTrainedModel) -> None:
    for ids in prompts(4):
        plain = filled(host, ids, replace(FILLING, threshold=0.9), Fixed(6))
        never = filled(host, ids, replace(FILLING, threshold=0.9), Adaptive(END + 1, size=6))
        assert never == plain


def test_a_block_ends_with_the_surest_delimiter() -> None:
    words = torch.tensor([5, NEWLINE, 5, NEWLINE, 5, 5])
    sure = torch.tensor([0.9, 0.35, 0.9, 0.6, 0.9, 0.9])
    assert Adaptive(NEWLINE, size=5).tokens(words, sure) == 4
    assert Adaptive(NEWLINE, size=5, sure=0.7).tokens(words, sure) == 5
    assert Fixed(8).tokens(words, sure) == 6, "no longer than the window"


def test_more_tokens_a_look_take_fewer_looks(host: headwise.PreTrainedModel) -> None:
    ids = prompts(1)[0]
    looks = [filled(host, ids, replace(FILLING, tokens=count), Fixed(8)).looks for count in (1, 2, 4, 8)]
    assert looks == sorted(looks, reverse=True) and len(set(looks)) == 4


def test_what_cannot_be_filled_is_refused(host: headwise.PreTrainedModel) -> None:
    ids = prompts(1)[0]
    with pytest.raises(ContextError, match="read a prompt"):
        fill(host, headwise.Cache(host), FILLING, Fixed(8))
    with pytest.raises(ContextError, match="positions"):
        filled(host, ids, replace(FILLING, length=600), Fixed(8))
    with pytest.raises(HeadwiseError, match="a window of 12"):
        filled(host, ids, FILLING, Fixed(13))
    with pytest.raises(HeadwiseError, match="drafts=2"):
        Filling(length=8, mask=MASK, end=END, drafts=2, threshold=0.9)
    with pytest.raises(SessionError, match="leave the select part out"):
        filled(host, ids, FILLING, Fixed(8), "quest(8)")


def test_windows_are_noised_as_they_are_filled() -> None:
    """A masked token sees the text before its window and the window, the text nothing of any window."""
    example = texts("sums").example(3)
    batch = noised([example], 48, Random(0))
    ids, sight, labels = batch.ids[0], batch.sight[0, 0], batch.labels[0]
    start = len(example.prompt)
    assert torch.equal(sight[:48, :48], torch.ones(48, 48).tril().bool()) and not sight[:48, 48:].any()
    masked = (ids == MASK).nonzero()[:, 0]
    assert len(masked) and (masked >= 48 + start).all()
    assert torch.equal(labels[masked], ids[masked - 48]) and int((labels[48:] != -100).sum()) == len(masked)
    for place in masked.tolist():
        own = sight[place, 48:].nonzero()[:, 0]
        assert torch.equal(sight[place, :48].nonzero()[:, 0], torch.arange(int(own[0]))), "all text before the window"
        assert start <= int(own[0]) <= place - 48 <= int(own[-1])


def test_training_goes_on_where_it_was_stopped(
    tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And ends with the same weights as one that was not stopped."""
    monkeypatch.setattr("headwise.models.diffusion.SAVE_SECONDS", 0.0)
    recipe = Recipe(width=16, depth=1, heads=1, steps=6, batch=2)

    def stop(what: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        diffusion_host(recipe, stop, tmp_path / "stopped")
    seen: list[int] = []
    other = diffusion_host(recipe, lambda what, done, total: seen.append(done), tmp_path / "stopped")
    whole = diffusion_host(recipe, lambda what, done, total: None, tmp_path / "whole")
    assert seen[0] == 3
    for one, two in zip(other.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(FileError, match="another folder"):
        diffusion_host(replace(recipe, lr=1e-4), stop, tmp_path / "whole")


def test_a_host_learns(host: headwise.PreTrainedModel) -> None:
    batch = noised([texts("sums").example(HELD + one) for one in range(16)], 48, Random(1))
    untrained = Recipe(width=32, depth=2, heads=2).untrained()
    assert float(loss_of(host, batch)) < 0.7 * float(loss_of(untrained, batch))
    assert decode(list(texts("sums").example(1).prompt)) == "5-3+5-5+5:"
