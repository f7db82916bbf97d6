"""`headwise.speculate` under transformers' generate: batches, sampling, stopping, streams, interrupts, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TextStreamer

import headwise
from headwise.decoding.base import Draft, Proposer, Written
from headwise.decoding.speculate import drafter, draw, write
from headwise.errors import FileError, HeadwiseError, RecipeError, SessionError
from headwise.seams.transformers.forward import cache_argument
from tests.engine.small import build, tokens

NEW = 70


def generated(model: Any, ids: torch.Tensor, cache: headwise.Cache, draft: Any = None, **how: Any) -> torch.Tensor:
    """What `generate` writes after ids, with drafts or without."""
    torch.manual_seed(5)
    if draft is None:
        how[cache_argument(type(model))] = cache
    else:
        how["custom_generate"] = headwise.speculate(model, cache, draft)
    out: torch.Tensor = model.generate(ids, **{"max_new_tokens": NEW, "do_sample": False} | how)
    return out


class Told(Proposer):
    """Guesses from texts that are known, six tokens at once."""

    def __init__(self, texts: torch.Tensor, padding: tuple[int, ...] = ()) -> None:
        self.texts = [row[count:] for row, count in zip(texts, padding or (0,) * len(texts), strict=True)]

    def propose(self, written: Written) -> Draft:
        text, start = self.texts[written.row], len(written.ids)
        guess = text[start : start + min(6, written.most)].tolist()
        return Draft([token if (start + n) % (5 + written.row) else 1 for n, token in enumerate(guess)])


@pytest.mark.parametrize("recipe", ["", "h2o(0.4, sinks=2, recent=6) | int8", "quest(16, sinks=2, recent=4)"])
def test_left_padded_batches(recipe: str) -> None:
    model, ids = build(), tokens(60, rows=2)
    mask = torch.ones_like(ids)
    ids[1, :13], mask[1, :13] = 0, 0
    how = {"attention_mask": mask}
    plain, held = generated(model, ids, first := headwise.Cache(model, recipe), **how), first.session
    cache = headwise.Cache(model, recipe)
    assert generated(model, ids, cache, Told(plain, (0, 13)), **how).tolist() == plain.tolist()
    assert cache.session is not None and held is not None
    assert cache.session.ledger.drafts["accepted"] > 10 and cache.session.seen == held.seen


def test_rows_that_end_early_hold_no_other_back() -> None:
    model, ids = build(), tokens(60, rows=2)
    plain = generated(model, ids, headwise.Cache(model))
    end = int(plain[1, 70])
    how = {"eos_token_id": end, "pad_token_id": 0}
    plain = generated(model, ids, headwise.Cache(model), **how)
    assert plain[1, -1] == 0 and plain[0, -1] != 0
    cache = headwise.Cache(model)
    assert generated(model, ids, cache, Told(plain), **how).tolist() == plain.tolist()
    assert cache.session is not None and cache.session.ledger.drafts["accepted"] > 20


def test_sampled_draws_are_those_of_plain_sampling_from_the_same_seed() -> None:
    model, ids = build(), tokens(60)
    how = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2}
    plain = generated(model, ids, headwise.Cache(model), **how)
    assert plain.tolist() != generated(model, ids, headwise.Cache(model)).tolist()
    cache = headwise.Cache(model)
    assert generated(model, ids, cache, Told(plain), **how).tolist() == plain.tolist()
    assert cache.session is not None and cache.session.ledger.drafts["accepted"] > 20


def test_drawn_drafts_keep_the_distribution() -> None:
    """Chi-square over 20,000 draws: tokens drawn by q and verified are distributed as p, however far q is from it."""
    wanted = torch.tensor([0.4, 0.3, 0.05, 0.05, 0.15, 0.03, 0.02])
    by = torch.tensor([0.05, 0.35, 0.3, 0.1, 0.1, 0.05, 0.05])
    generator = torch.Generator().manual_seed(1)
    guesses = torch.multinomial(by, 20_000, replacement=True, generator=generator).tolist()

    class One:
        token = 0

        def guessed(self, row: int) -> list[tuple[int, torch.Tensor]]:
            return [(self.token, by)]

    torch.manual_seed(2)
    verifier, counts, stayed = One(), torch.zeros(7), 0
    for verifier.token in guesses:
        token = int(draw(verifier, wanted.log()[None], True))
        counts[token] += 1
        stayed += token == verifier.token
    chi_square = float(((counts - 20_000 * wanted) ** 2 / (20_000 * wanted)).sum())
    assert chi_square < 16.8, "6 degrees of freedom, 1 %"
    assert abs(stayed / 20_000 - float(torch.minimum(wanted, by).sum())) < 0.02


def test_a_sampling_drafter_goes_through_generate() -> None:
    """Two tokens over many seeds, drafted by the model under another recipe: as often as without drafts."""
    model, ids = build(vocab_size=8, pad_token_id=0), tokens(40).clamp(max=7)
    how = {"do_sample": True, "max_new_tokens": 5, "temperature": 3.0}
    drafted, plain = torch.zeros(8), torch.zeros(8)
    for seed in range(100):
        for counts, custom in ((drafted, True), (plain, False)):
            cache = headwise.Cache(model)
            run = {"custom_generate": headwise.speculate(model, cache, "itself('exact_topk(8, sinks=0, recent=2)', 3)")}
            torch.manual_seed(seed + 1000 * custom)
            out = model.generate(ids, **how, **(run if custom else {cache_argument(type(model)): cache}))
            counts[out[0, -1]] += 1
    both = drafted + plain
    held = both > 10
    chi_square = float((((drafted - plain) ** 2) / both.clamp(min=1))[held].sum())
    assert chi_square < 20.1, "at most 8 degrees of freedom, 1 %"


def test_stopping_criteria_and_streams() -> None:
    model, ids = build(), tokens(60)
    plain = generated(model, ids, headwise.Cache(model))

    def stop(seen: torch.Tensor, scores: object) -> torch.Tensor:
        return torch.tensor([seen.shape[1] >= 87])

    class Words:
        def decode(self, shown: list[int], **how: object) -> str:
            return "".join(f"{int(token)} " for token in shown)

    class Kept(TextStreamer):
        text, ended = "", False

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.text, self.ended = self.text + text, stream_end

    cache, stream = headwise.Cache(model), Kept(Words(), skip_prompt=True)
    run = headwise.speculate(model, cache, Told(plain), streamer=stream)
    out = model.generate(ids, max_new_tokens=NEW, do_sample=False, custom_generate=run, stopping_criteria=[stop])
    assert out.tolist() == plain[:, :87].tolist()
    assert cache.get_seq_length() == 86, "the last token is not read, as without drafts"
    assert stream.ended and [int(word) for word in stream.text.split()] == out[0, 60:].tolist()


def test_turns_go_on_with_the_cache() -> None:
    model = build()
    plain, cache = headwise.Cache(model, "h2o(0.5)"), headwise.Cache(model, "h2o(0.5)")
    ids = other = tokens(60)
    for turn in range(3):
        more = tokens(9, seed=turn)
        ids = generated(model, torch.cat((ids, more), 1), plain, max_new_tokens=30)
        other = generated(model, torch.cat((other, more), 1), cache, Told(ids), max_new_tokens=30)
        assert ids.tolist() == other.tolist()


@pytest.mark.parametrize("when", [64, 67, 71])
def test_an_interrupt_leaves_the_last_accepted_token(when: int) -> None:
    """Wherever it comes, the cache is what an interrupted plain generation leaves."""
    model, ids, recipe = build(), tokens(60), "h2o(0.4, sinks=2, recent=6)"
    plain = generated(model, ids, headwise.Cache(model, recipe))

    def interrupt(seen: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if seen.shape[1] == when:
            raise KeyboardInterrupt
        return scores

    caches = headwise.Cache(model, recipe), headwise.Cache(model, recipe)
    for cache, draft in zip(caches, (None, Told(plain)), strict=True):
        with pytest.raises(KeyboardInterrupt):
            generated(model, ids, cache, draft, logits_processor=[interrupt])
    sessions = [cache.session for cache in caches]
    assert sessions[0] is not None and sessions[1] is not None
    assert sessions[0].seen == sessions[1].seen == [when]
    rest = [
        generated(model, plain[:, : when + 1], cache, draft, max_new_tokens=30).tolist()
        for cache, draft in zip(caches, (None, Told(plain)), strict=True)
    ]
    assert rest[0] == rest[1]


def test_a_failing_forward_takes_its_draft_back() -> None:
    model, ids = build(), tokens(60)
    plain, cache = generated(model, ids, headwise.Cache(model)), headwise.Cache(model)
    calls = 0

    def fail(*given: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise RuntimeError("planted")

    handle = model.lm_head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="planted"):
        generated(model, ids, cache, Told(plain))
    handle.remove()
    held = cache.get_seq_length()
    assert cache.session is not None and cache.session.drafted is None and 60 < held < 75
    rest = generated(model, plain[:, : held + 1], cache, Told(plain), max_new_tokens=NEW - (held + 1 - 60))
    assert rest.tolist() == plain.tolist()


def test_over_a_cache_that_read_its_prompt() -> None:
    model, ids = build(), tokens(20).repeat(1, 3)
    plain, cache = headwise.Cache(model, "int8"), headwise.Cache(model, "int8")
    want = headwise.decode(model, plain, headwise.prefill(model, plain, ids), 40)
    got = write(model, cache, headwise.prefill(model, cache, ids), 40, "lookup", ids)
    assert got.tolist() == want.tolist() and cache.get_seq_length() == plain.get_seq_length()


def test_what_is_no_drafter_is_refused(tmp_path: Path) -> None:
    model = build()
    cache = headwise.Cache(model)
    with pytest.raises(SessionError, match="'act_qkv' chooses by what later layers"):
        headwise.speculate(model, headwise.Cache(model, "act_qkv"), "lookup")
    with pytest.raises(HeadwiseError, match="3 is no drafter"):
        headwise.speculate(model, cache, 3)
    for phrase, told in (("lookup(tokens=0)", "tokens"), ("lokup", "lokup"), ("itself('snapkw')", "snapkw")):
        with pytest.raises(RecipeError, match=told):
            drafter(phrase)
    (tmp_path / "runs.json").write_text("[]")
    with pytest.raises(FileError, match="no file of runs"):
        headwise.speculate(model, cache, f"hierarchy(runs='{tmp_path / 'runs.json'}')")
