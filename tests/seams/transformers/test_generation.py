"""Every way of `generate` with a headwise cache: as with a DynamicCache, or refused by our own error before work."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from transformers import DynamicCache

import headwise
from headwise.errors import SessionError, UnsupportedModel
from headwise.seams.transformers.forward import cache_argument
from tests.engine.small import build, tokens
from tests.seams.transformers.generation import MODES, RECIPES, generate, ids_of, outcome, turns

from . import generation

GOOD = {"identical", "works", "refused", "transformers refuses"}
KNOWN = json.loads(generation.DATA.read_text())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize("mode", MODES)
def test_a_mode_does_what_the_page_says(mode: str, kind: str) -> None:
    found = outcome(mode, kind)
    assert found.told in GOOD, found
    if transformers.__version__ in KNOWN:
        assert found.told == KNOWN[transformers.__version__][mode][kind], found


def test_five_turns_store_what_they_say_once() -> None:
    """A second `generate` continues: it does not append the whole conversation again."""
    model = build()
    held, plain = headwise.Cache(model, ""), DynamicCache()
    assert torch.equal(turns(model, tokens(70), held), turns(build(), tokens(70), plain))
    assert held.get_seq_length() == plain.get_seq_length() == 70 + 5 * generation.NEW + 4 * 9 - 1


def test_turns_under_an_eviction_read_new_tokens_only() -> None:
    model = build()
    held, ids = headwise.Cache(model, "snapkv(0.5)"), tokens(70)
    for turn in range(5):
        ids = torch.cat((generate(model, ids, held), tokens(9, seed=turn)), 1)
        assert held.get_seq_length() == ids.shape[1] - 10
        assert held.session.ledger.tokens.total() == held.get_seq_length()


@torch.no_grad()
def test_beams_of_an_evicting_recipe_forget_each_for_itself() -> None:
    """Rows reordered in a cache are those of the winning beams: scoring the answer anew in one row says the same."""
    model = build()
    held = headwise.Cache(model, "streaming(0.5)")
    ids = tokens(70)
    answer = generate(model, ids, held, num_beams=3, return_dict_in_generate=True, output_scores=True)
    alone, total = headwise.Cache(model, "streaming(0.5)"), 0.0
    argument = cache_argument(type(model))
    logits = model(ids, **{argument: alone}).logits[:, -1]
    for token in answer.sequences[0, 70:]:
        total += float(logits.log_softmax(-1)[0, token])
        logits = model(token[None, None], **{argument: alone}).logits[:, -1]
    assert abs(float(answer.sequences_scores[0]) - total / generation.NEW) < 1e-3


def test_a_batch_of_another_size_is_refused_and_can_be_fitted() -> None:
    model = build()
    held, ids = headwise.Cache(model, ""), tokens(70)
    answer = ids_of(generate(model, ids, held))
    turn = torch.cat((answer, tokens(9)), 1)
    with pytest.raises(SessionError, match="batch_repeat_interleave"):
        generate(model, turn, held, num_beams=3)
    assert held.get_seq_length() == 70 + generation.NEW - 1
    held.batch_repeat_interleave(3)
    assert torch.equal(generate(model, turn, held, num_beams=3), generate(build(), turn, None, num_beams=3))
    held.batch_select_indices(torch.tensor([1]))
    assert held.batch_size == 1


def test_drafts_are_refused_past_a_window_too() -> None:
    config = transformers.MistralConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, sliding_window=24, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.MistralForCausalLM(config).eval()
    held = headwise.Cache(model, "")
    with pytest.raises(SessionError, match="windows"):
        generate(model, tokens(70), held, prompt_lookup_num_tokens=3)
    assert held.get_seq_length() == 0


def test_a_mask_that_is_not_of_the_whole_conversation_is_refused() -> None:
    model = build()
    held, argument = headwise.Cache(model, ""), cache_argument(type(model))
    model(tokens(40), **{argument: held})
    mask = torch.ones(1, 9)
    mask[0, 0] = 0
    with pytest.raises((SessionError, UnsupportedModel), match="conversation"):
        model(tokens(9), attention_mask=mask, **{argument: held})
