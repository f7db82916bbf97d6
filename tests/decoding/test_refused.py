"""What drafts cannot be verified under is refused by name and with a way out, before the model reads anything."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import headwise
from headwise.assets import embedded_model
from headwise.decoding.second import Second
from headwise.errors import SessionError, UnsupportedModel
from headwise.forms import Tree
from headwise.methods.evict.streaming import Streaming
from headwise.recipe import Recipe
from headwise.seams.transformers.forward import forward
from tests.decoding.test_generate import Told, generated
from tests.engine.small import build, tokens


def test_a_drafter_of_another_tokenizer(tmp_path: Path) -> None:
    """Vocabularies of one size, of which two tokens have changed places."""
    model = AutoModelForCausalLM.from_pretrained(embedded_model())
    headwise.speculate(model, headwise.Cache(model), f"smaller('{embedded_model()}')")
    shutil.copytree(embedded_model(), tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    told = json.loads(file.read_text())
    words = told["model"]["vocab"]
    one, two = [word for word, number in words.items() if number in (300, 301)]
    words[one], words[two] = words[two], words[one]
    file.write_text(json.dumps(told))
    with pytest.raises(
        UnsupportedModel, match=r"is token 30. there and 30. of the model; draft with a model of the same"
    ):
        headwise.speculate(model, headwise.Cache(model), f"smaller('{tmp_path / 'other'}')")


def test_a_drafter_of_another_vocabulary_and_a_cache_of_another_model() -> None:
    model = build()
    with pytest.raises(UnsupportedModel, match="vocabulary of 96 tokens, the model one of 128; draft with a model of"):
        headwise.speculate(model, headwise.Cache(model), build(vocab_size=96))
    with pytest.raises(SessionError, match=r"the cache is of another model; give headwise.Cache\(model\)"):
        headwise.speculate(build(seed=2), headwise.Cache(model), "lookup")


@pytest.mark.parametrize("tree", [None, Tree((-1, 0, 0, 1, 1, 2, 4))], ids=["chain", "tree"])
def test_a_draft_beyond_the_trained_positions(tree: Tree | None) -> None:
    """By hand it is refused; a generation cuts its drafts there, and ends where plain decoding ends."""
    model, ids = build(max_position_embeddings=64), tokens(60)
    cache = headwise.Cache(model)
    headwise.prefill(model, cache, ids)
    told = "drafted tokens are more than the 4 that can be taken back now; propose fewer"
    with pytest.raises(SessionError, match=told), cache.drafted(tree):
        forward(model, cache, tokens(7), position_ids=torch.arange(60, 67)[None])
    assert cache.get_seq_length() == 60
    plain = generated(model, ids, headwise.Cache(model), max_new_tokens=4)
    assert generated(model, ids, headwise.Cache(model), Told(plain), max_new_tokens=4).tolist() == plain.tolist()


def test_beside_a_method_that_must_see_whole_prompts() -> None:
    model = build()
    kind = type("Whole", (Streaming,), {"card": replace(Streaming.card, chunking="whole_prompt")})
    recipe = Recipe(evict=kind(0.5))
    told = "must see the whole prompt at once, and drafts are read several tokens at a time; use another method, or no"
    with pytest.raises(SessionError, match=told):
        headwise.speculate(model, headwise.Cache(model, recipe), "lookup")
    with pytest.raises(SessionError, match=told):
        Second(model, recipe, 4)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"num_beams": 2}, "num_beams=2: beams are not drafted; leave one of the two out"),
        ({"return_dict_in_generate": True}, "drafted generation returns ids alone; leave it out"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha=0.6: generate would write in a way of its own"),
        ({"dola_layers": "high"}, "dola_layers='high': generate would write in a way of its own"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens=3: generate would write in a way of its own"),
    ],
)
def test_settings_that_cannot_be_kept(how: dict[str, Any], told: str) -> None:
    model = build()
    cache = headwise.Cache(model)
    with pytest.raises(SessionError, match=told):
        generated(model, tokens(20), cache, "lookup", **how)
    assert cache.get_seq_length() == 0


@pytest.mark.parametrize("draft", ["lookup(drafts=4)", "itself('streaming(24, sinks=2, recent=8)')"])
@pytest.mark.parametrize("recipe", ["", "h2o(0.4, sinks=2, recent=6) | int8", "quest(16, sinks=2, recent=4)"])
def test_an_interrupt_leaves_the_cache_at_the_last_accepted_token(recipe: str, draft: str) -> None:
    """The cache holds what was written before the newest token, and the generation goes on as if never interrupted."""
    model, ids = build(), tokens(30).repeat(1, 2)
    plain, cache, written = generated(model, ids, headwise.Cache(model, recipe)), headwise.Cache(model, recipe), ids

    def interrupt(seen: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        nonlocal written
        written = seen
        if seen.shape[1] == 75:
            raise KeyboardInterrupt
        return scores

    with pytest.raises(KeyboardInterrupt):
        generated(model, ids, cache, draft, logits_processor=[interrupt])
    assert cache.get_seq_length() == written.shape[1] == 75
    assert written.tolist() == plain[:, :75].tolist()
    rest = generated(model, plain[:, :76], cache, draft, max_new_tokens=54)
    assert rest.tolist() == plain.tolist()
