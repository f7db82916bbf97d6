"""The laws of steering, on every registered method."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headwise.engine.persist import load_session, save_session
from headwise.engine.session import Session
from headwise.forms import where
from headwise.kernels.reference import attention, scores
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.registry import methods
from tests.contract.drive import Text, decode, feed
from tests.contract.steer.cases import (
    HEADS,
    PROMPT,
    SHAPE,
    STEPS,
    TOKENS,
    marks_of,
    method,
    named,
    scores_of,
    steered,
    texts,
    view_of,
)

every = pytest.mark.parametrize("name", sorted(methods("steer")))
PATTERN = "vertical_slash(8, slashes=16, first=2, nearest=4)"
BESIDE = ("", "h2o(0.5, sinks=2, recent=6) | int8", f"{PATTERN} | kivi(window=8)")
CHOSEN = {(0, 1), (0, 2), (1, 0)}


@pytest.mark.parametrize("beside", BESIDE)
@every
def test_at_rest_it_is_bit_equal_to_no_steering(name: str, beside: str) -> None:
    text = texts()
    part = method(name, **methods("steer")[name].at_rest)
    _, dense = steered(None, text, beside=beside)
    _, out = steered(part, text, beside=beside)
    assert torch.equal(out, dense)


@every
def test_heads_that_are_not_named_are_bit_equal(name: str) -> None:
    text = texts()
    _, dense = steered(None, text)
    _, out = steered(method(name, heads=HEADS), text)
    for layer in range(2):
        for head in range(4):
            assert torch.equal(out[layer, 0, head], dense[layer, 0, head]) == ((layer, head) not in CHOSEN)


@every
def test_weights_of_keys_that_are_not_named_keep_their_ratios(name: str) -> None:
    text, part = texts(), method(name)
    _, dense = steered(None, text)
    session, out = steered(part, text)
    for layer, head in CHOSEN:
        inside = named(session, part, layer, head, TOKENS)
        ratios = (out / dense)[layer, 0, head][:, ~inside]
        for row in ratios:
            own = row[row.isfinite()]
            assert torch.allclose(own, own[:1].expand_as(own), rtol=1e-3)
        changed = (out - dense)[layer, 0, head][:, inside].abs().amax(1) > 1e-4
        assert bool(changed.any()), "it steers nothing here"


@every
def test_rows_sum_to_1(name: str) -> None:
    for beside in ("", f"{PATTERN} | h2o(0.5, sinks=2, recent=6)"):
        _, out = steered(method(name), texts(), beside=beside)
        assert torch.allclose(out.sum(-1), torch.ones(()), atol=1e-6)


@every
def test_it_equals_whole_matrices_in_blocks_of_any_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, part = texts(), method(name)
    for module in (where, attention, scores):
        monkeypatch.setattr(module, "BLOCK_ELEMENTS", 600)
    session, out = steered(part, text, chunks=(PROMPT,))
    for layer in range(2):
        for head in range(4):
            positions = torch.arange(PROMPT)
            s = scores_of(text, layer, head, PROMPT, positions)
            right = part.plain(s, view_of(session, layer, head // 2, positions), head % 2)
            rows = slice(PROMPT - 1, PROMPT) if part.last_only else slice(PROMPT)
            assert torch.allclose(out[layer, 0, head, rows, :PROMPT], right[rows], atol=2e-6)


@pytest.mark.parametrize("beside", ["", "h2o(0.5, sinks=2, recent=6)", "streaming(0.5, recent=6) | exact_topk(12)"])
@every
def test_new_tokens_are_steered_among_what_is_kept_and_read(name: str, beside: str) -> None:
    text, part = texts(), method(name)
    session, out = steered(part, text, beside=beside)
    _, plain = steered(None, text, beside=beside)
    for layer in range(2):
        for head in range(4):
            read = plain[layer, 0, head, -1] > 0  # what a selection shows, too
            positions = read.nonzero()[:, 0]
            s = scores_of(text, layer, head, TOKENS, positions)[-1:]
            right = part.plain(s, view_of(session, layer, head // 2, positions), head % 2)
            assert torch.allclose(out[layer, 0, head, -1, positions], right[0], atol=2e-6)
            assert not bool(out[layer, 0, head, -1, ~read].any())


@every
def test_a_padded_batch_equals_its_rows_alone(name: str) -> None:
    part, text, pad = method(name), texts(2), 7
    live = torch.ones(2, PROMPT, dtype=torch.bool)
    live[1, :pad] = False
    marks = [*marks_of(part), *marks_of(part, row=1)]
    session = Session(Plan.uniform(SHAPE, Recipe(steer=part)), rows=2, marks=marks)
    both = feed(session, text, 0, PROMPT, "prefill", live=live)
    both = torch.cat((both, decode(session, text, PROMPT, STEPS)), 3)
    _, first = steered(part, text.rows([0]))
    short = text.rows([1]).since(pad)
    _, second = steered(part, short, chunks=(PROMPT - pad,))
    assert torch.allclose(both[:, :1], first, atol=1e-5)
    assert torch.allclose(both[:, 1:, :, pad:], second, atol=1e-5)


@every
def test_a_prompt_in_pieces_equals_one_pass(name: str) -> None:
    text, part = texts(), method(name)
    _, whole = steered(part, text)
    _, pieces = steered(part, text, chunks=(17, 20, 3))
    if part.card.chunking == "exact":
        assert torch.allclose(whole, pieces, atol=1e-5)
    else:
        assert not torch.allclose(whole, pieces, atol=1e-5), "its card may say exact"


@every
def test_forks_and_saved_sessions_go_on_alike(name: str, tmp_path: Path) -> None:
    text, part = texts(), method(name)
    beside, prompt = BESIDE[1], Text(*(x[:, :, :, :PROMPT] for x in (text.q, text.k, text.v)))
    _, out = steered(part, text, beside=beside)
    again, _ = steered(part, prompt, beside=beside)
    save_session(again, tmp_path / "one")
    loaded, _ = load_session(tmp_path / "one", again.plan)
    for one in (again.fork(), loaded):
        assert torch.equal(decode(one, text, PROMPT, STEPS), out[..., PROMPT:, :])


@every
def test_nothing_changes_before_the_first_mark(name: str) -> None:
    """Where there are marks to steer."""
    text, part = texts(), method(name)
    _, dense = steered(None, text)
    _, out = steered(part, text)
    first = min((mark.start for mark in marks_of(part)), default=0)
    assert torch.equal(out[..., :first, :], dense[..., :first, :])
