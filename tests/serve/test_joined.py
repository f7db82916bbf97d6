"""Pieces of a prompt that one forward reads together: fewer forwards, the same answers, whoever shares what of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel

from headwise.plan import Plan
from headwise.seams.transformers.cache import attach
from headwise.seams.transformers.load import load_model
from headwise.serve.pieces import cuts
from headwise.serve.promise import gathers, reads_alike
from headwise.serve.request import Request, Scored, Usage
from headwise.serve.rows import Rows, steady_pieces
from headwise.serve.scheduler import Scheduler
from tests.serve.alone import alone, prompt
from tests.serve.test_scheduler import GREEDY, LIMITS, RECIPES, run, submit

PIECE = LIMITS.piece


@pytest.fixture(scope="module")
def plan(model: PreTrainedModel) -> Callable[[str], Plan]:
    seam = attach(model)
    return lambda recipe: Plan.uniform(seam.geometry, recipe, seam.fingerprint)


@pytest.fixture
def made(model: PreTrainedModel, tokenizer: Any, rows: Rows) -> Scheduler:
    return Scheduler(model, tokenizer, replace(LIMITS, joined=3), rows, ends=())


@pytest.fixture
def forwards(model: PreTrainedModel) -> Any:
    """Tokens of every prompt's forward."""
    found: list[int] = []

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(kwargs["input_ids"].shape[1])

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    yield found
    hook.remove()


def test_cuts_are_left_out_but_for_joined_ones_and_the_last() -> None:
    assert cuts(1000, 100) == [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]
    assert cuts(1200, 100, joined=4) == [400, 800, 900, 1000, 1100, 1200]
    assert cuts(1200, 100, 300, joined=4) == [400, 800, 900, 1000, 1100, 1200], "counted from the prompt's start"
    assert cuts(820, 100, joined=4) == [400, 800, 820]
    assert cuts(1000, 100, 900, joined=4) == [1000]
    assert cuts(90, 100, joined=4) == [90] and cuts(1000, None, joined=4) == [1000]


@pytest.mark.parametrize("recipe", ["", "snapkv(0.4)", "quest(32)"])
def test_prompts_that_begin_alike_share_what_was_read_of_them_whatever_their_forwards(
    made: Scheduler, model: PreTrainedModel, plan: Callable[[str], Plan], forwards: list[int], recipe: str
) -> None:
    """The shorter one goes on in the midst of a forward of the longer, and a third where that had ended."""
    made.limits = replace(made.limits, prefix_bytes=1 << 20)
    made.prefixes.limit = 1 << 20
    long = prompt(9 * PIECE + 20, 1)
    asked = (long, [*long[: 4 * PIECE + 9], *prompt(30, 2)], [*long[: 8 * PIECE], *prompt(2 * PIECE, 3)])
    known = []
    for ids in asked:
        forwards.clear()
        _, told = submit(made, Request(tuple(ids), plan(recipe), 8, GREEDY))
        run(made)
        wanted = alone(model, recipe, ids, 8, PIECE, gather=True).ids
        assert isinstance(told.last, Usage) and told.tokens() == wanted
        known.append(told.last.cached)
    assert known[0] == 0 and all(one >= 3 * PIECE for one in known[1:])


def test_forwards_read_several_pieces(made: Scheduler, plan: Callable[[str], Plan], forwards: list[int]) -> None:
    submit(made, Request(tuple(prompt(7 * PIECE + 20)), plan(""), 1, GREEDY))
    run(made)
    assert forwards == [3 * PIECE, 3 * PIECE, PIECE, 20]


@pytest.mark.parametrize(
    ("recipe", "alike"),
    [("", True), ("quest(32)", True), ("int8", False), ("snapkv(0.4)", True), ("a_shape(4, window=32)", True),
     ("flex_prefill", False), ("snapkv(0.4) | int4", False)],
)  # fmt: skip
def test_what_a_cut_would_change_is_read_piece_by_piece(plan: Callable[[str], Plan], recipe: str, alike: bool) -> None:
    assert reads_alike(plan(recipe), gathers(plan(recipe))) == alike
    if "snapkv" in recipe:
        assert not reads_alike(plan(recipe), False), "it evicts at the end of each piece"


def test_a_prompt_whose_tokens_are_all_looked_at_is_read_piece_by_piece(
    made: Scheduler, plan: Callable[[str], Plan], forwards: list[int]
) -> None:
    _, told = submit(made, Request(tuple(prompt(3 * PIECE)), plan(""), 1, GREEDY, scored=True))
    run(made)
    assert max(forwards) == PIECE and any(isinstance(one, Scored) for one in told.events)


def test_layers_with_a_window_hold_what_was_promised(tokenizer: Any) -> None:
    """They hold their window and what one forward has read, until it ends."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 512, "num_hidden_layers": 2}
    config = MistralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, sliding_window=32)
    windowed = MistralForCausalLM(config).eval()
    made = Scheduler(windowed, tokenizer, replace(LIMITS, joined=4), Rows(1, 1), ends=())
    seam = attach(windowed)
    submit(made, Request(tuple(prompt(9 * PIECE)), Plan.uniform(seam.geometry, "", seam.fingerprint), 4, GREEDY))
    while made.advance():
        stats = made.stats()
        assert stats.held <= stats.promised
    assert not made.stats().counts.get("promises_broken")


def test_pieces_that_are_steady_are_found(place: Path, model: PreTrainedModel) -> None:
    assert steady_pieces(model, PIECE, 1 << 20) == 1, "more tokens than the model was trained on"
    wrong = load_model(place)
    layers: Any = wrong.base_model.layers
    layers[0].mlp.register_forward_hook(lambda mlp, args, out: out * (1 + 1e-4 * out.shape[1]))
    assert steady_pieces(wrong, PIECE) == 1
    one, whole = (alone(model, "", prompt(8 * PIECE), 1, piece).logits[0] for piece in (PIECE, 4 * PIECE))
    assert steady_pieces(model, PIECE) == (4 if torch.equal(one, whole) else 1)


SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip


def chunked() -> PreTrainedModel:
    """A model whose class has no part of the name that transformers takes for the part that gives states."""
    own = {"head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2, "attention_chunk_size": 32}
    return transformers.Llama4ForCausalLM(transformers.Llama4TextConfig(**SMALL | own)).eval()


def long_rope() -> PreTrainedModel:
    """A model that rotates keys in another way beyond so many tokens as two pieces have."""
    rope = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    config = transformers.Phi3Config(**SMALL, original_max_position_embeddings=2 * PIECE, rope_scaling=rope)
    return transformers.Phi3ForCausalLM(config).eval()


@pytest.mark.parametrize("make", [chunked, long_rope])
def test_models_that_cannot_be_tried_are_served_piece_by_piece(make: Callable[[], PreTrainedModel]) -> None:
    assert steady_pieces(make(), PIECE) == 1


@pytest.mark.parametrize("recipe", [one for one in RECIPES if one])
def test_answers_are_the_same_joined_or_not(
    model: PreTrainedModel, tokenizer: Any, rows: Rows, plan: Callable[[str], Plan], recipe: str
) -> None:
    """Whatever is summed in another order is at most a rounding away: the tiny model has no ties so near."""
    answers = []
    for joined in (1, 3):
        one = Scheduler(model, tokenizer, replace(LIMITS, joined=joined), rows, ends=())
        _, told = submit(one, Request(tuple(prompt(5 * PIECE, 4)), plan(recipe), 8, GREEDY))
        run(one)
        answers.append(told.tokens())
    assert answers[0] == answers[1] and len(answers[0]) == 8
