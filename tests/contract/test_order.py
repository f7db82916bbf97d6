"""Nothing leaks: points 4 (from the future), 5 (between rows, sessions), 6 (between heads) and 9 (between chunks)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from headwise.engine.group import DECODE_INTERVAL
from headwise.engine.session import Session
from headwise.errors import SessionError
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.registry import all_methods
from tests.contract import dense
from tests.contract.drive import Text, decode, everything, feed, full, geometry, kept, names, prefill, run, small

# Methods that tell heads apart by their number, on purpose: shuffling heads must change what they choose.
NUMBERED = {
    "random": "draws by head number, so that heads lose different tokens",
    "s2": "gives each head its own shard",
    "s2_keep": "gives each head its own shard",
    "s2_read": "gives each head its own shard",
}
ALL = ["dense", *everything()]


def recipe_of(name: str) -> Recipe:
    return Recipe() if name == "dense" else small(name)


def chunking(name: str) -> set[str]:
    """What the cards of the recipe's parts promise for a prompt in chunks."""
    return {part.own_card.chunking for part in recipe_of(name).parts} | {"exact"}


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", ALL)
def test_later_steps_change_no_earlier_output(name: str) -> None:
    one, other = Text.random(geometry(), 110), Text.random(geometry(), 110, seed=1)
    for x, y in zip(vars(one).values(), vars(other).values(), strict=True):
        y[..., :104, :] = x[..., :104, :]
    outs = [run(geometry(), recipe_of(name), text, (60, 40), 10)[1] for text in (one, other)]
    assert torch.equal(outs[0][..., :104, :], outs[1][..., :104, :])
    assert not torch.equal(outs[0][..., 104:, :], outs[1][..., 104:, :])


@pytest.mark.parametrize("name", ALL)
def test_later_tokens_of_a_prompt_change_no_earlier_output(name: str) -> None:
    """A pattern that is found by queries may look at later queries to decide where to read; values never flow back."""
    recipe = recipe_of(name)
    one, other = Text.random(geometry(), 100), Text.random(geometry(), 100, seed=1)
    looks = recipe.prefill is not None and "queries" in recipe.prefill.view_needs
    for letter, x in vars(one).items():
        same = slice(0, 100) if looks and letter != "v" else slice(0, 70)
        getattr(other, letter)[..., same, :] = x[..., same, :]
    outs = [run(geometry(), recipe, text, [100], 0)[1] for text in (one, other)]
    close(outs[0][..., :70, :], outs[1][..., :70, :])
    assert not torch.allclose(outs[0][..., 70:, :], outs[1][..., 70:, :])


@pytest.mark.parametrize("name", ALL)
def test_a_padded_batch_equals_its_rows_alone(name: str) -> None:
    lengths, steps = (90, 61, 24), 5
    text = Text.random(geometry(), 90 + steps, rows=3)
    live = torch.arange(90, 0, -1) <= torch.tensor(lengths)[:, None]
    session = Session(Plan.uniform(geometry(), recipe_of(name)), rows=3)
    prompt = feed(session, text, 0, 90, "prefill", live=live)
    stored = kept(session)
    after = decode(session, text, 90, steps)
    for row, length in enumerate(lengths):
        padding = 90 - length
        alone = Session(Plan.uniform(geometry(), recipe_of(name)))
        own = text.rows([row]).since(padding)
        close(prompt[:, row : row + 1, :, padding:], prefill(alone, own, [length]))
        assert not prompt[:, row, :, :padding].any()
        assert [layer[row] for layer in stored] == [layer[0] for layer in kept(alone)]
        close(after[:, row : row + 1], decode(alone, own, length, steps))


@pytest.mark.parametrize("name", [name for name in ALL if chunking(name) != {"whole_prompt"}])
def test_a_padded_batch_in_chunks_equals_its_rows_alone(name: str) -> None:
    """A row's first tokens may lie inside any chunk, and its budget is a share of its own length."""
    lengths = (90, 61, 24)
    text = Text.random(geometry(), 95, rows=3)
    live = torch.arange(90, 0, -1) <= torch.tensor(lengths)[:, None]
    session = Session(Plan.uniform(geometry(), recipe_of(name)), rows=3)
    for start in (0, 45):
        feed(session, text, start, 45, "prefill", live=live[:, start : start + 45], total=90)
    stored, after = kept(session), decode(session, text, 90, 5)
    for row, length in enumerate(lengths):
        alone = Session(Plan.uniform(geometry(), recipe_of(name)))
        own = text.rows([row]).since(90 - length)
        prefill(alone, own, [length - 45, 45] if length > 45 else [length])
        assert [layer[row] for layer in stored] == [layer[0] for layer in kept(alone)]
        close(after[:, row : row + 1], decode(alone, own, length, 5))


@pytest.mark.parametrize("name", ALL)
def test_a_row_without_new_tokens_stays_as_it_is(name: str) -> None:
    text = Text.random(geometry(), 110, rows=2)
    session = Session(Plan.uniform(geometry(), recipe_of(name)), rows=2)
    prefill(session, text, [60])
    both = session.fork()
    before = [layer[1] for layer in kept(session)]
    for step in range(3):
        out = feed(session, text, 60 + step, 1, "decode", live=torch.tensor([[True], [False]]))
        close(out[:, :1], feed(both, text, 60 + step, 1, "decode")[:, :1])
        assert not out[:, 1].any()
    assert session.seen == [63, 60]
    assert [layer[1] for layer in kept(session)] == before


@pytest.mark.parametrize("name", [name for name in ALL if recipe_of(name).select is None])
def test_several_new_tokens_at_once_equal_one_at_a_time(name: str) -> None:
    """The last of the tokens brings an eviction, and it leaves the same."""
    first = 100 + DECODE_INTERVAL - 7
    text = Text.random(geometry(), first + 10)
    at_once = Session(Plan.uniform(geometry(), recipe_of(name)))
    prefill(at_once, text, [100])
    decode(at_once, text, 100, first - 100)
    one_by_one = at_once.fork()
    close(feed(at_once, text, first, 7, "decode"), decode(one_by_one, text, first, 7))
    assert kept(at_once) == kept(one_by_one)
    close(*(decode(session, text, first + 7, 3) for session in (at_once, one_by_one)))


def test_padding_on_the_right_is_refused() -> None:
    session = Session(Plan.uniform(geometry(), Recipe()), rows=2)
    with pytest.raises(SessionError, match="row 1"):
        session.begin(3, "prefill", live=torch.tensor([[True, True, True], [True, True, False]]))


@pytest.mark.parametrize("name", ALL)
def test_two_sessions_interleaved_equal_two_alone(name: str) -> None:
    texts = [Text.random(geometry(), 105, seed=seed) for seed in (0, 1)]
    alone = [run(geometry(), recipe_of(name), text, (60, 40), 5)[1] for text in texts]
    sessions = [Session(Plan.uniform(geometry(), recipe_of(name))) for _ in texts]
    outs: list[list[torch.Tensor]] = [[], []]
    for start, count, phase in [(0, 60, "prefill"), (60, 40, "prefill"), *((100 + i, 1, "decode") for i in range(5))]:
        for out, session, text in zip(outs, sessions, texts, strict=True):
            out.append(feed(session, text, start, count, phase, total=100 if phase == "prefill" else None))
    for out, expected in zip(outs, alone, strict=True):
        assert torch.equal(torch.cat(out, dim=3), expected)


@pytest.mark.parametrize(("query_heads", "kv_heads"), [(4, 4), (4, 2), (8, 2), (8, 1)])
@pytest.mark.parametrize("name", ALL)
def test_every_grouping_of_heads(name: str, query_heads: int, kv_heads: int) -> None:
    shape = geometry(query_heads, kv_heads)
    text = Text.random(shape, 104)
    if all(part.part != "compress" for part in recipe_of(name).parts) and name in all_methods():
        close(run(shape, full(name), text, [100], 4)[1].double(), dense.all_causal(text))
    session, out = run(shape, recipe_of(name), text, (70, 30), 4)
    assert out.isfinite().all()
    assert session.lengths(0).shape == (1, kv_heads)


@pytest.mark.parametrize("name", [name for name in ALL if name not in NUMBERED])
def test_shuffling_heads_shuffles_results_and_nothing_else(name: str) -> None:
    shape, order = geometry(8, 4), [2, 0, 3, 1]
    text = Text.random(shape, 104)
    session, out = run(shape, recipe_of(name), text, (70, 30), 4)
    shuffled, other = run(shape, recipe_of(name), text.heads(order), (70, 30), 4)
    close(other, Text(out, text.k, text.v).heads(order).q)
    assert kept(shuffled) == [[[row[head] for head in order] for row in layer] for layer in kept(session)]


@pytest.mark.parametrize("name", NUMBERED)
def test_heads_told_apart_by_number_do_not_see_each_other(name: str) -> None:
    shape = geometry(8, 4)
    text = Text.random(shape, 104)
    _, out = run(shape, recipe_of(name), text, (70, 30), 4)
    changed = Text(*(x.clone() for x in vars(text).values()))
    changed.q[:, :, 2:4], changed.k[:, :, 1], changed.v[:, :, 1] = 1.0, 2.0, 3.0
    _, other = run(shape, recipe_of(name), changed, (70, 30), 4)
    assert torch.equal(out[:, :, :2], other[:, :, :2])
    assert torch.equal(out[:, :, 4:], other[:, :, 4:])


@pytest.mark.parametrize("name", [name for name in ALL if chunking(name) == {"exact"}])
def test_a_prompt_in_chunks_equals_one_pass(name: str) -> None:
    text = Text.random(geometry(), 108)
    whole, out = run(geometry(), recipe_of(name), text, [100], 8)
    for chunks in ((50, 50), (16, 1, 70, 13)):
        parts, other = run(geometry(), recipe_of(name), text, chunks, 8)
        assert kept(parts) == kept(whole)
        start = 0 if recipe_of(name).evict is None else 100
        close(other[..., start:, :], out[..., start:, :])


@pytest.mark.parametrize("name", names("compress"))
def test_a_later_chunk_reads_an_earlier_one_as_it_is_stored(name: str) -> None:
    text = Text.random(geometry(), 100)
    out = run(geometry(), small(name), text, (50, 50), 0)[1].double()
    close(out[..., :50, :], dense.all_causal(text)[..., :50, :])
    stored = [[[list(range(50))] * 2]] * 2
    close(out[..., 50:, :], dense.all_causal(dense.as_stored(text, small(name), 50, stored), 50))


def test_a_method_that_needs_the_whole_prompt_refuses_chunks() -> None:
    streaming = all_methods()["streaming"]
    card = replace(streaming.card, chunking="whole_prompt")
    whole = type("Whole", (streaming,), {"card": card})(0.5)
    session = Session(Plan.uniform(geometry(), Recipe(evict=whole)))
    with pytest.raises(SessionError, match="whole prompt"):
        session.begin(50, "prefill", total=100)


def test_every_exception_names_a_method() -> None:
    assert set(NUMBERED) <= set(names())
