"""Drafts of the tokens of a decoder beside an encoder: the same tokens, heads that attend to the encoder, refusals."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

import headwise
from headwise.decoding.base import Draft, Proposer, Written
from headwise.decoding.heads.base import made
from headwise.decoding.heads.train import Heard, Lesson, _loss, states_of, teach
from headwise.errors import SessionError, UnsupportedModel
from headwise.seams.transformers.forward import encoded, generation_argument
from tests.engine.small import build
from tests.seams.transformers.test_encoder_decoder import given, model

NEW = 40
KINDS = ["medusa", "medusa_block"]


def written(name: str, draft: Any = None, recipe: str = "", **how: Any) -> list[list[int]]:
    """What `generate` writes of two inputs; without a drafter over transformers' own cache."""
    held = headwise.EncoderDecoderCache(model(name), recipe)
    own = {} if draft is None else {"custom_generate": headwise.speculate(model(name), held, draft)}
    settings = {"max_new_tokens": NEW, "do_sample": False} | own | how
    out: list[list[int]] = t.GenerationMixin.generate(model(name), **given(name), **settings).tolist()
    if draft is not None:
        session = held.self_attention_cache.session
        assert session is not None and session.ledger.drafts["passes"] > 3, held.report()
    return out


class Told(Proposer):
    """Guesses from texts that are known, one of five spoilt; what an encoder gave is noted."""

    def __init__(self, texts: list[list[int]]) -> None:
        self.texts, self.encoded = texts, dict[int, torch.Tensor | None]()

    def propose(self, written: Written) -> Draft:
        self.encoded[written.row] = written.encoded
        start = len(written.ids)
        guess = self.texts[written.row][start : start + min(written.most, 5)]
        return Draft([token if (start + place) % 5 else 1 for place, token in enumerate(guess)])


@pytest.mark.parametrize("recipe", ["", "int8"])
@pytest.mark.parametrize("name", ["bart", "whisper"])
def test_a_decoders_tokens_stay(name: str, recipe: str) -> None:
    held = {} if not recipe else {generation_argument(): headwise.EncoderDecoderCache(model(name), recipe)}
    plain = written(name, **held)
    told = Told(plain)
    assert written(name, told, recipe) == plain
    for row in range(2):
        shown = told.encoded[row]
        assert shown is not None and shown.shape[0] == (30 if name == "whisper" else (40, 31)[row])


def one(name: str) -> dict[str, torch.Tensor]:
    return {key: value[:1] for key, value in given(name).items()}


@functools.cache
def heard() -> list[Heard]:
    """What a Whisper writes of sounds, beside what its encoder made of them."""
    made_, found = model("whisper"), []
    for seed in range(12):
        sound = torch.randn(1, 8, 60, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            states = made_.get_encoder()(sound)
        ids = t.GenerationMixin.generate(made_, encoder_outputs=states, max_new_tokens=NEW, do_sample=False)
        found.append(Heard(ids[0], {"encoder_outputs": states}))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_heads_learn_beside_an_encoder_and_change_no_token(kind: str, tmp_path: Path) -> None:
    learnt = teach(model("whisper"), (heard()[2:], heard()[:2]), Lesson(kind, steps=40, rate=3e-3), tmp_path / "state")
    torch.manual_seed(0)
    bare = made(kind, model("whisper"), 3)
    own, untrained = (sum(_loss(heads, model("whisper"), text) for text in heard()) for heads in (learnt.heads, bare))
    assert float(own) < 0.7 * float(untrained)
    learnt.save(tmp_path / "heads")
    how = one("whisper")
    plain = t.GenerationMixin.generate(model("whisper"), **how, max_new_tokens=NEW, do_sample=False)
    held = headwise.EncoderDecoderCache(model("whisper"))
    draft = headwise.speculate(model("whisper"), held, f"{kind}('{tmp_path / 'heads'}', nodes=10)")
    got = t.GenerationMixin.generate(
        model("whisper"), **how, max_new_tokens=NEW, do_sample=False, custom_generate=draft
    )
    assert got.tolist() == plain.tolist() and "best chain" not in held.report(), "trees are read"


def test_a_block_sees_no_later_token_and_does_see_the_encoder() -> None:
    heads, text = made("medusa_block", model("whisper"), 3), heard()[0]
    ids, _, states = states_of(model("whisper"), text)
    sound = encoded(text.beside, 0)
    assert sound is not None
    with torch.no_grad():
        long = heads.begin(states[:30], ids[1:31], torch.tensor([12]), sound)
        short = heads.begin(states[:13], ids[1:14], torch.tensor([12]), sound)
        other = heads.begin(states[:13], ids[1:14], torch.tensor([12]), sound.flip(1))
    assert torch.allclose(long, short, atol=1e-5) and not torch.allclose(long, other, atol=1e-2)


def test_what_cannot_be_drafted_there_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="LlamaForCausalLM has none; train 'medusa' heads"):
        made("medusa_block", build(), 3)
    with pytest.raises(SessionError, match="attends by itself, and what it drafts cannot be taken back"):
        headwise.speculate(model("t5"), headwise.EncoderDecoderCache(model("t5")), "lookup")
    mask = torch.tensor([[1, 1], [0, 1]])
    with pytest.raises(SessionError, match="decoder_attention_mask hides tokens"):
        written("whisper", "lookup", decoder_input_ids=torch.tensor([[2, 5], [2, 5]]), decoder_attention_mask=mask)


def test_a_prompt_of_one_token_is_drafted_behind() -> None:
    llama = build()
    ids = torch.tensor([[5]])
    how = {"max_new_tokens": 30, "do_sample": False}
    draft = headwise.speculate(llama, headwise.Cache(llama), "lookup")
    assert llama.generate(ids, **how, custom_generate=draft).tolist() == llama.generate(ids, **how).tolist()
