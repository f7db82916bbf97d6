"""Layers that attend within chunks (Llama 4): what a query sees begins anew every so many tokens of its own row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from headwise.engine.session import Session
from headwise.errors import ShapeError
from headwise.forms import Window, near
from headwise.geometry import LayerGeometry
from headwise.plan import Plan
from headwise.recipe import Recipe
from tests.contract import dense, drive
from tests.contract.drive import Text, geometry, run

SIZE, PROMPT, STEPS = 16, 90, 20
SHAPE = replace(
    geometry(windows=(SIZE, None, SIZE)),
    layers=tuple(replace(one, chunked=one.window is not None) for one in geometry(windows=(SIZE, None, SIZE)).layers),
)


def together(tokens: int) -> torch.Tensor:
    """Whether two tokens are of one chunk, drawn."""
    chunk = torch.arange(tokens) // SIZE
    return chunk[:, None] == chunk


def truth(text: Text) -> torch.Tensor:
    """Of the layers that are chunked."""
    tokens = text.q.shape[3]
    return dense.attention(text, 0, together(tokens))[[0, 2]]


def close(out: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(out[[0, 2]].double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("seen", range(1, 40))
def test_what_is_seen_is_the_chunk(seen: int) -> None:
    for tokens in range(1, seen + 1):
        for stored in range(min(seen, max(tokens, SIZE + tokens - 1)), seen + 1):
            expected = (together(seen) & torch.ones(seen, seen).tril().bool())[seen - tokens :, seen - stored :]
            assert torch.equal(near(SIZE, True, seen, tokens, stored).dense(tokens, stored)[0], expected)
    assert near(SIZE, False, seen, 1, seen) == Window(SIZE - 1)


@pytest.mark.parametrize(
    "recipe", ["dense", "snapkv(0.3, sinks=2, recent=6)", "h2o(0.4, sinks=2, recent=6)", "quest(16)"]
)
@pytest.mark.parametrize("chunks", [(90,), (25, 32, 33), (20, 12, 58)])
def test_prompts_and_steps_stay_within_chunks(chunks: tuple[int, ...], recipe: str) -> None:
    """Pieces of prompts end before, at and behind the ends of chunks; no more than a chunk is held after each."""
    text = Text.random(SHAPE, PROMPT + STEPS)
    session, out = run(SHAPE, Recipe.parse(recipe), text, chunks, STEPS)
    close(out, truth(text))
    assert int(session.lengths(0).max()) <= SIZE + STEPS


@pytest.mark.parametrize("recipe", ["dense", "int8", "kivi(window=8, group=16)"])
def test_drafts_across_the_end_of_a_chunk(recipe: str) -> None:
    """Several tokens in one step give what single ones give, however keys are coded."""
    text = Text.random(SHAPE, PROMPT + 12)
    one, several = (Session(Plan.uniform(SHAPE, recipe)) for _ in range(2))
    for session in (one, several):
        drive.prefill(session, text, [PROMPT])
    single = torch.cat([drive.feed(one, text, PROMPT + i, 1, "decode") for i in range(12)], dim=3)
    close(drive.feed(several, text, PROMPT, 12, "decode"), single[[0, 2]].double(), 1e-4)
    if recipe == "dense":
        close(single, truth(text)[..., PROMPT:, :])


def test_rows_are_each_as_far_in_their_chunks_as_they_are() -> None:
    text = Text.random(SHAPE, PROMPT + STEPS, rows=2)
    live = torch.ones(2, PROMPT, dtype=torch.bool)
    live[1, :37] = False
    session = Session(Plan.uniform(SHAPE, ""), rows=2)
    outs = [drive.feed(session, text, 0, PROMPT, "prefill", live=live)]
    outs += [drive.feed(session, text, PROMPT + i, 1, "decode") for i in range(STEPS)]
    out = torch.cat(outs, dim=3)
    close(out[:, :1], truth(text.rows([0])))
    close(out[:, 1:, :, 37:], truth(text.rows([1]).since(37)))


def test_a_chunk_of_no_size_is_refused() -> None:
    with pytest.raises(ShapeError, match="give window"):
        LayerGeometry(4, 2, 32, 16, chunked=True)
