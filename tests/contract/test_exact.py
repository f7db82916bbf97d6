"""Outputs are exact: points 1 (full budget), 7 (evicted means not there, and nothing else) and 12 (backends agree)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from headwise.engine.session import Session
from headwise.forms import Buckets, Composite, Scoring, Weighted
from headwise.geometry import Geometry
from headwise.kernels.dispatch import BACKENDS, only
from headwise.methods.budget import Budget
from headwise.methods.evict import Evict
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.registry import all_methods
from tests.contract import dense
from tests.contract.drive import (
    COMBINED,
    Text,
    decode,
    everything,
    feed,
    full,
    geometry,
    kept,
    names,
    prefill,
    run,
    small,
)

PROMPT, STEPS = 100, 6


def close(out: torch.Tensor, truth: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(out.double(), truth, atol=tolerance, rtol=tolerance)


ATTENDING = [name for name, backend in BACKENDS.all().items() if "attend" in backend.kernels]


@pytest.mark.parametrize("chunks", [(100,), (30, 41, 29)])
@pytest.mark.parametrize("name", ["dense", *names("prefill", "evict", "budget", "select")])
def test_full_budget_equals_dense(name: str, chunks: tuple[int, ...]) -> None:
    text = Text.random(geometry(), PROMPT + STEPS)
    _, out = run(geometry(), Recipe() if name == "dense" else full(name), text, chunks, STEPS)
    close(out, dense.all_causal(text))


@pytest.mark.parametrize("name", names("compress"))
def test_a_codec_changes_only_what_lies_in_the_cache(name: str) -> None:
    text = Text.random(geometry(), PROMPT + STEPS)
    _, out = run(geometry(), full(name), text, [PROMPT], STEPS)
    close(out[..., :PROMPT, :], dense.all_causal(text)[..., :PROMPT, :])
    close(out[..., PROMPT:, :], dense.all_causal(dense.as_stored(text, full(name), PROMPT), PROMPT))


def test_soft_caps_are_honoured() -> None:
    text = Text.random(geometry(), PROMPT)
    session = Session(Plan.uniform(geometry(), full("snapkv")))
    session.begin(PROMPT, "prefill")
    outs = [session.step(i, text.q[i], text.k[i], text.v[i], Scoring(1.0, 2.0)) for i in range(2)]
    scores = torch.einsum("lbhgtd,lbhnd->lbhgtn", text.q.unflatten(2, (2, 2)).double(), text.k.double())
    capped = 2 * (scores / 2).tanh()
    weights = capped.masked_fill(torch.ones(PROMPT, PROMPT, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
    close(torch.stack(outs), torch.einsum("lbhgtn,lbhne->lbhgte", weights, text.v.double()).flatten(2, 3))


@pytest.mark.parametrize(
    ("recipe", "lost"),
    [("dense", 1e-5), ("snapkv(0.3, sinks=2, recent=6)", 1e-5), ("snapkv(0.3, recent=6) | int8", 0.03)],
)
def test_sliding_layers_see_their_window_and_hold_no_more(recipe: str, lost: float) -> None:
    """Whatever the recipe evicts, computes or reads; its compression alone counts there."""
    shape = geometry(windows=(16, None, 16))
    text = Text.random(shape, PROMPT + STEPS)
    session, out = run(shape, Recipe.parse(recipe), text, (60, 40), STEPS)
    near = torch.ones(PROMPT + STEPS, PROMPT + STEPS, dtype=torch.bool).triu(-15)
    truth = dense.attention(text, 0, near)
    close(out[[0, 2]], truth[[0, 2]], lost)
    assert int(session.lengths(0).max()) <= 16 + STEPS
    codecs = ("int8", "int8") if "int8" in recipe else ("plain", "plain")
    assert [store.shape.codecs for store in session.stores(0)] == [codecs]


@pytest.mark.parametrize("name", [n for n in everything() if small(n).select is None])
def test_decoding_is_dense_attention_over_what_is_kept(name: str) -> None:
    recipe = small(name)
    text = Text.random(geometry(), PROMPT + STEPS, rows=2)
    session = Session(Plan.uniform(geometry(), recipe), rows=2)
    prefill(session, text, [PROMPT])
    stored = [[[[*have, *range(PROMPT, PROMPT + STEPS)] for have in row] for row in layer] for layer in kept(session)]
    held = dense.as_held(session, text, stored)
    out = decode(session, text, PROMPT, STEPS)
    close(out, dense.over_kept(held, recipe, stored, PROMPT))


@dataclass(frozen=True)
class Named(Evict):
    """Keeps tokens given by position and head number."""

    tokens: tuple[frozenset[int], ...] = ()

    def score(self, view: Any) -> torch.Tensor:
        rows = zip(view.heads, view.positions.tolist(), strict=True)
        return torch.tensor([[float(p in self.tokens[head]) for p in positions] for head, positions in rows])


@dataclass(frozen=True)
class Ragged(Budget):
    """Counts given by head."""

    counts: tuple[int, ...] = ()

    def allot(self, scores: torch.Tensor, protect: torch.Tensor, count: int) -> torch.Tensor:
        return torch.tensor(self.counts)


@pytest.mark.parametrize("counts", [(40, 40), (17, 63), (1, 79), (16, 32)])
def test_evicting_any_interior_set_equals_dense_without_it(counts: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(counts[0])
    tokens = tuple(frozenset(torch.randperm(PROMPT, generator=generator)[:count].tolist()) for count in counts)
    evict = Named(sum(counts) // 2, sinks=0, recent=0, tokens=tokens)
    text = Text.random(geometry(), PROMPT + STEPS)
    session, out = run(geometry(), Recipe(evict=evict, budget=Ragged(counts)), text, [PROMPT], STEPS)
    stored = [[sorted(one | set(range(PROMPT, PROMPT + STEPS))) for one in tokens]]
    assert kept(session) == [stored, stored]
    truth = dense.attention(text, PROMPT, dense.showing([stored, stored], PROMPT + STEPS))
    close(out[..., PROMPT:, :], truth)


def test_heads_of_one_layer_may_follow_different_recipes() -> None:
    shape = geometry(8, 4)
    row = tuple(map(Recipe.parse, ("dense", "snapkv(20, sinks=2, recent=6)", "int8", "snapkv(20, sinks=2, recent=6)")))
    text = Text.random(shape, PROMPT + STEPS)
    session = Session(Plan(shape, (row, row[::-1])))
    close(prefill(session, text, [PROMPT]), dense.all_causal(text)[..., :PROMPT, :])
    assert session.lengths(0).tolist() == [[100, 20, 100, 20]]
    assert session.lengths(1).tolist() == [[20, 100, 20, 100]]
    stored = [[[[*have, *range(PROMPT, PROMPT + STEPS)] for have in one] for one in layer] for layer in kept(session)]
    coded = dense.as_stored(text, row[2], PROMPT)
    keys, values = text.k.clone(), text.v.clone()
    for layer, head in ((0, 2), (1, 1)):
        keys[layer, :, head], values[layer, :, head] = coded.k[layer, :, head], coded.v[layer, :, head]
    truth = dense.attention(Text(text.q, keys, values), PROMPT, dense.showing(stored, PROMPT + STEPS))
    close(decode(session, text, PROMPT, STEPS), truth)


def drawn_bias(where: Weighted, stored: int) -> torch.Tensor:
    """What is added to the scores of each query head: [H, 1, stored]."""
    drawn = torch.zeros(where.heads, *where.bias[0].shape[:2], stored)
    for head, (entries, bias) in enumerate(zip(where.tokens.indices, where.bias, strict=True)):
        drawn[head][..., entries] = bias
    return drawn.flatten(0, 1)


def drawn_pieces(where: Composite, heads: int, group: int, size: tuple[int, int]) -> torch.Tensor:
    """The same of what each pair of a prompt counts for, -inf where a query head does not see it: [H, *size]."""
    drawn = torch.full((heads, group, *size), -torch.inf)
    for part in where.parts:
        own = drawn[:, :, part.queries.start : part.queries.stop, part.keys.start : part.keys.stop]
        if not isinstance(part.where, Buckets):
            shown = part.where.dense(*own.shape[2:])
            own[shown[:, None].expand_as(own)] = 0.0
            continue
        for head, (queries, keys, bias) in enumerate(
            zip(part.where.queries, part.where.keys, part.where.bias, strict=True)
        ):
            for block in range(len(keys)):
                real = bias[block].isfinite()
                for g in range(group):
                    own[head, g, queries[g, block, :, None], keys[block, real]] = bias[block, real]
    return drawn.flatten(0, 1)


@pytest.mark.parametrize("name", names("prefill", "select"))
def test_a_pattern_reads_exactly_the_pairs_it_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = all_methods()[name]
    verb = "where" if cls.part == "prefill" else "select"
    named: list[torch.Tensor] = []
    biases: list[torch.Tensor] = []
    original = getattr(cls, verb)

    def spy(self: Any, view: Any) -> Any:
        where = original(self, view)
        named.append(where.dense(PROMPT if cls.part == "prefill" else 1, view.count))
        if isinstance(where, Weighted):
            biases.append(drawn_bias(where, view.count))
        if isinstance(where, Composite):
            biases.append(drawn_pieces(where, len(view.heads), 2, (PROMPT, view.count)))
        return where

    monkeypatch.setattr(cls, verb, spy)
    text = Text.random(geometry(), PROMPT + 2)
    session = Session(Plan.uniform(geometry(), small(name)))
    out = prefill(session, text, [PROMPT])
    if cls.part == "select":  # the second step, as a method with a memory may read everything in the first
        feed(session, text, PROMPT, 1, "decode")
        named.clear()
        biases.clear()
        out = feed(session, text, PROMPT + 1, 1, "decode")
    start, end = (0, PROMPT) if cls.part == "prefill" else (PROMPT + 1, PROMPT + 2)
    whole = Text(*(x[..., :end, :] for x in (text.q, text.k, text.v)))
    visible = torch.stack([one.expand(2, -1, -1) for one in named])[:, None]
    # causal attention shows half of a prompt and all to a new token; some selectors read everything in some layers
    assert visible.float().mean() < (0.5 if cls.part == "prefill" else 0.9)
    close(out, dense.attention(whole, start, visible, torch.stack(biases)[:, None] if biases else None))


@pytest.mark.parametrize("backend", [name for name in ATTENDING if BACKENDS.get(name).available()[0]])
@pytest.mark.parametrize("name", ["dense", *COMBINED])
def test_backends_agree_and_choose_the_same_tokens(name: str, backend: str) -> None:
    recipe = Recipe() if name == "dense" else small(name)
    shape = Geometry.uniform(4, 2, 32, 32, (None, None), 4096)  # torch's fused kernels refuse others
    text = Text.random(shape, PROMPT + STEPS, rows=2)
    results = []
    for asked in (("reference",), (backend, "reference")):
        with only("decoded", *asked):
            results.append(run(shape, recipe, text, (64, 36), STEPS))
    assert backend in {name for _, name in results[1][0].ledger.backends}
    close(results[1][1], results[0][1].double(), 1e-4)
    pairs = [
        len(set(a) & set(b)) / len(a)
        for one, two in zip(kept(results[0][0]), kept(results[1][0]), strict=True)
        for row_a, row_b in zip(one, two, strict=True)
        for a, b in zip(row_a, row_b, strict=True)
    ]
    assert sum(pairs) / len(pairs) >= 0.99
