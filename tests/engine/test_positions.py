"""Reading at positions of one's own: keys and queries turned again, and who may go beyond the trained positions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import headwise
from headwise.cache.tiers import Tier, given_tier
from headwise.engine.session import Session
from headwise.errors import ContextError, RecipeError, UnsupportedModel
from headwise.geometry import Geometry
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers.drive import decode, prefill
from headwise.shapes import Rope
from tests.contract import drive
from tests.contract.drive import SCALE, Text, feed, geometry

ROPE = Rope(10000.0 ** (-torch.arange(16) / 16))
NEAR = "token_select(1, sinks=4, recent=8, positions='compact')"  # reads its sinks and recent tokens, and no others
LIMIT = 128


def turned(text: Text) -> Text:
    """The text with keys and queries rotated by their true positions, as a model hands them over."""
    places = torch.arange(text.q.shape[3])
    return Text(ROPE.rotate(text.q, places), ROPE.rotate(text.k, places), text.v)


def session(recipe: str, rows: int = 1, shape: Geometry | None = None, tier: Tier | None = None) -> Session:
    shape = shape or geometry()
    return Session(Plan.uniform(shape, recipe), rows=rows, ropes=[ROPE] * len(shape.layers), tier=tier)


def whole(run: Session, text: Text, chunks: tuple[int, ...], steps: int) -> torch.Tensor:
    return torch.cat((drive.prefill(run, text, chunks), drive.decode(run, text, sum(chunks), steps)), dim=3)


def near(text: Text, start: int, count: int) -> torch.Tensor:
    """What tokens start..start+count-1 read of 4 sinks, 8 tokens before them and themselves, rotated as if these were
    the whole text, from keys and queries that were not rotated before: [L, b, H, count, e]."""
    past = [i for i in range(start) if i < 4 or i >= start - 8]
    index = torch.tensor([*past, *range(start, start + count)])
    places = torch.arange(len(index))
    group = text.q.shape[2] // text.k.shape[2]
    keys = ROPE.rotate(text.k[..., index, :], places).repeat_interleave(group, 2).double()
    values = text.v[..., index, :].repeat_interleave(group, 2).double()
    queries = ROPE.rotate(text.q[..., start : start + count, :], places[len(past) :]).double()
    later = torch.ones(count, len(index), dtype=torch.bool).triu(len(past) + 1)
    return (queries @ keys.mT * SCALE).masked_fill(later, -torch.inf).softmax(-1) @ values


def test_what_is_read_lies_at_compact_positions_in_prompts_and_while_decoding() -> None:
    bare = Text.random(geometry(), 120)
    out = whole(session(NEAR), turned(bare), (50, 30, 34), 6)
    starts = (0, 50, 80, *range(114, 120))
    for start, stop in zip(starts, (*starts[1:], 120), strict=True):
        torch.testing.assert_close(
            out[..., start:stop, :].double(), near(bare, start, stop - start), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("name", ["token_select", "long_heads"])
def test_everything_chosen_and_turned_again_is_dense(name: str) -> None:
    text = turned(Text.random(geometry(), 106))
    out = whole(session(f"{name}(1, sinks=1000, positions='compact')"), text, (60, 40), 6)
    torch.testing.assert_close(out, whole(session(""), text, (60, 40), 6), atol=1e-5, rtol=1e-5)


def test_memories_lie_at_one_position_and_all_that_an_eviction_left_is_placed() -> None:
    """Of 40 stored tokens all are read; those that are neither sinks nor recent are memories, at position 0."""
    bare = Text.random(geometry(), 101)
    run = session("random(40, sinks=2, recent=6) | extended_mind(1.0, sinks=2, recent=6, positions='fixed')")
    drive.prefill(run, turned(bare), (60, 40))
    stored = [[run.positions(layer, 0, head) for head in range(2)] for layer in range(2)]
    out = drive.decode(run, turned(bare), 100, 1)
    for layer, heads in enumerate(stored):
        for head, index in enumerate(heads):
            local = (index < 2) | (index >= 94)
            places = torch.where(local, local.cumsum(0) - 1, 0)
            assert len(index) == 40 and int(local.sum()) == 8
            index, places = torch.cat((index, torch.tensor([100]))), torch.cat((places, torch.tensor([8])))
            keys = ROPE.rotate(bare.k[layer, 0, head, index], places).double()
            queries = ROPE.rotate(bare.q[layer, 0, 2 * head : 2 * head + 2, 100:], torch.tensor([8])).double()
            truth = (queries @ keys.mT * SCALE).softmax(-1) @ bare.v[layer, 0, head, index].double()
            torch.testing.assert_close(out[layer, 0, 2 * head : 2 * head + 2].double(), truth, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("recipe", [NEAR, "long_heads(24, sinks=2, recent=8, size=8, positions='compact')"])
def test_pages_in_a_tier_are_read_alike(recipe: str, tmp_path: Path) -> None:
    text = turned(Text.random(geometry(), 120))
    tiered = session(recipe, tier=given_tier("32KiB", tmp_path))
    assert torch.equal(whole(tiered, text, (50, 64), 6), whole(session(recipe), text, (50, 64), 6))


def test_rows_of_a_padded_batch_count_their_own_positions() -> None:
    bare = Text.random(geometry(), 90, rows=2)
    live = torch.arange(90, 0, -1) <= torch.tensor((90, 60))[:, None]
    places = (live.cumsum(1) - 1).clamp(min=0)[:, None]
    text = Text(ROPE.rotate(bare.q, places), ROPE.rotate(bare.k, places), bare.v)
    both = session(NEAR, rows=2)
    for start in (0, 45):
        out = feed(both, text, start, 45, "prefill", live=live[:, start : start + 45], total=90)
    own = bare.rows([1]).since(30)
    torch.testing.assert_close(out[:, 1:].double(), near(own, 15, 45), atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=LIMIT, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def ids(tokens: int) -> torch.Tensor:
    return torch.randint(0, 64, (1, tokens), generator=torch.Generator().manual_seed(0))


def test_beyond_the_trained_positions_every_head_needs_a_policy(model: LlamaForCausalLM) -> None:
    seam = headwise.attach(model)
    mixed = Plan.uniform(seam.geometry, NEAR)
    mixed = replace(mixed, recipes=(mixed.recipes[0], (mixed.recipes[1][0], Recipe())))
    for plan in ("", "token_select(64)", mixed):
        with pytest.raises(ContextError, match="positions='compact'"):
            prefill(model, headwise.Cache(model, plan), ids(LIMIT + 1), 40)
    cache = headwise.Cache(model, NEAR)
    logits = prefill(model, cache, ids(3 * LIMIT), 40)
    assert decode(model, cache, logits, 20).shape == (1, 20)
    assert cache.get_seq_length() == 3 * LIMIT + 19


def test_a_chunk_that_leaves_no_room_for_what_it_reads_is_refused_before_work_starts(model: LlamaForCausalLM) -> None:
    cache = headwise.Cache(model, "long_heads(96, size=8, recent=8, positions='compact')")
    with pytest.raises(ContextError, match="chunks of 32 tokens"):
        prefill(model, cache, ids(3 * LIMIT), 64)
    assert cache.get_seq_length() == 0


def test_in_the_trained_positions_a_policy_with_room_changes_nothing(model: LlamaForCausalLM) -> None:
    answers = []
    for recipe in ("", "long_heads(1.0, positions='compact')", "extended_mind(1.0, positions='fixed')"):
        cache = headwise.Cache(model, recipe)
        answers.append(prefill(model, cache, ids(LIMIT - 10), 40))
    assert torch.equal(answers[1], answers[0]) and torch.equal(answers[2], answers[0])


@pytest.mark.parametrize(
    ("recipe", "culprit"),
    [
        (f"a_shape(4, window=32) | {NEAR}", "a_shape"),
        (f"razor(0.5) | {NEAR}", "razor"),
    ],
)
def test_parts_that_a_policy_contradicts_are_refused(recipe: str, culprit: str) -> None:
    with pytest.raises(RecipeError, match=f"'{culprit}'.*positions='true'"):
        Recipe.parse(recipe)


def test_models_without_positions_to_change_are_refused() -> None:
    torch.manual_seed(0)
    learned = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=LIMIT, n_embd=32, n_layer=2, n_head=2)).eval()
    with pytest.raises(UnsupportedModel, match="does not rotate"):
        headwise.Cache(learned, NEAR)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=LIMIT,
        rope_scaling={"rope_type": "dynamic", "factor": 2.0},  # the name that 4.x and 5.x both read
    )  # fmt: skip
    dynamic = LlamaForCausalLM(config).eval()
    headwise.Cache(dynamic, "token_select(64)")
    with pytest.raises(UnsupportedModel, match="dynamic"):
        headwise.Cache(dynamic, NEAR)
