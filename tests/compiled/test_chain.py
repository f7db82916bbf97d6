"""Layers that wait for each other: one native call a step, and the same numbers as layer by layer, bit for bit."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import headwise
from headwise.errors import SessionError
from headwise.forms import Tree
from headwise.kernels.native.chain import Chain
from headwise.kernels.native.library import missing
from headwise.plan import Plan
from headwise.seams.transformers import chain
from headwise.seams.transformers.compiled import CompiledLayer, unlink_layers
from headwise.seams.transformers.forward import cache_argument, forward
from headwise.seams.transformers.together import step_together
from tests.compiled.test_fast import build
from tests.engine.small import tokens

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"until the kernels are built: {missing()}")

RECIPES = (
    "",
    "int8",
    "snapkv(0.25) | int8",
    "h2o(0.4, sinks=2, recent=8)",
    "streaming(40)",
    "int4(32)",
    "balanced",
    "snapkv(0.5) | balanced",
)


@contextmanager
def runs() -> Iterator[list[int]]:
    """The layers of every chain that is run inside."""
    counts: list[int] = []
    own = Chain.run

    def run(self: Chain, first: int, x: Tensor, outs: object, angles: object) -> None:
        counts.append(len(outs))  # type: ignore[arg-type]
        own(self, first, x, outs, angles)  # type: ignore[arg-type]

    with mock.patch.object(Chain, "run", run):
        yield counts


def layers(model: nn.Module) -> list[nn.Module]:
    return [one for one in model.modules() if isinstance(one, CompiledLayer)]


def steps(model: nn.Module, cache: headwise.Cache, ids: Tensor, counts: list[int]) -> Tensor:
    """Logits of a prompt, and of steps of so many tokens."""
    out, at = [], 0
    with torch.no_grad():
        for count in (ids.shape[1] - sum(counts), *counts):
            out.append(forward(model, cache, ids[:, at : at + count]).logits)
            at += count
    return torch.cat(out, dim=1)


def held(cache: headwise.Cache) -> tuple[object, ...]:
    """What a cache holds and says of itself."""
    session = cache.session
    assert session is not None
    parts = [group.store.state() for group in session.groups]
    return cache.report(), cache.nbytes, session.ledger.operations, session.ledger.steps, parts


def same(one: object, other: object) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)  # type: ignore[arg-type]
    if isinstance(one, dict) and not hasattr(one, "most_common"):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)  # type: ignore[attr-defined, index]
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))  # type: ignore[arg-type]
    return one == other


COUNTS = [1, 1, 3, 1, *[1] * 70, 16, 1, *[1] * 30]  # past an eviction, and past the room that there is at first


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("family", ["qwen3", "gemma3", "mistral_window"])
def test_a_chain_gives_what_its_layers_give_one_by_one(family: str, recipe: str, rows: int) -> None:
    ids = tokens(90 + sum(COUNTS), rows=rows)
    for dtype in (torch.float32, torch.bfloat16):
        model = build(family, dtype)
        report = headwise.fast(model)
        assert report.apart == "" and report.compiled == 4
        caches = headwise.Cache(model, recipe), headwise.Cache(model, recipe)
        with runs() as counts:
            together = steps(model, caches[0], ids, COUNTS)
        apart = 2 * (family != "qwen3" and "balanced" in recipe)  # several tokens that look back within levels
        assert counts == [4] * (len(COUNTS) - apart), "one call each, also where room is made"
        unlink_layers(layers(model))
        with runs() as counts:
            alone = steps(model, caches[1], ids, COUNTS)
        assert not counts and not alone.isnan().any()
        assert torch.equal(together, alone)
        assert same(held(caches[0]), held(caches[1]))


def test_heads_of_a_layer_that_follow_several_recipes_are_one_call_too() -> None:
    model = build("qwen3")
    headwise.fast(model)
    geometry = headwise.Cache(model).plan.geometry
    recipes = [
        [headwise.Recipe.parse(("int8", "snapkv(0.3)", "", "streaming(40) | int8")[(i + j) % 4]) for j in range(2)]
        for i in range(4)
    ]
    plan = Plan(geometry=geometry, recipes=tuple(map(tuple, recipes)))
    ids = tokens(160, rows=2)
    caches = headwise.Cache(model, plan), headwise.Cache(model, plan)
    with runs() as counts:
        together = steps(model, caches[0], ids, [1, 2, *[1] * 20])
    assert counts == [4] * 22, "steps that make room are no others"
    unlink_layers(layers(model))
    assert torch.equal(together, steps(model, caches[1], ids, [1, 2, *[1] * 20]))
    assert same(held(caches[0]), held(caches[1]))


def test_who_listens_is_given_what_he_listens_to() -> None:
    model, ids = build("qwen3"), tokens(40)
    headwise.fast(model)
    cache, other = headwise.Cache(model), headwise.Cache(model)
    seen: list[Tensor] = []
    with torch.no_grad():
        for one in (cache, other):
            forward(model, one, ids)
        expected = forward(model, other, ids[:, :1], output_hidden_states=True).hidden_states
        hooks = [
            model.model.layers[0].register_forward_hook(lambda *given: seen.append(given[2].clone())),
            model.model.layers[2].register_forward_pre_hook(lambda *given: seen.append(given[1][0].clone())),
        ]
        with runs() as counts:
            forward(model, cache, ids[:, :1])
    assert counts == [1, 1, 2]
    assert torch.equal(seen[0], expected[1]) and torch.equal(seen[1], expected[2])
    for hook in hooks:
        hook.remove()


def test_a_hook_may_change_what_a_layer_gives() -> None:
    model, ids = build("qwen3"), tokens(40)
    headwise.fast(model)
    found = []
    model.model.layers[1].register_forward_hook(lambda layer, given, out: out * 1.5)
    for linked in (True, False):
        cache = headwise.Cache(model)
        if not linked:
            unlink_layers(layers(model))
        found.append(steps(model, cache, ids, [1, 2]))
    assert torch.equal(*found)


def test_caches_go_on_after_they_were_copied_cut_and_reordered() -> None:
    model, ids = build("qwen3"), tokens(60, rows=2)
    headwise.fast(model)
    found = []
    for linked in (True, False):
        if not linked:
            unlink_layers(layers(model))
        cache = headwise.Cache(model, "int8")
        out = [steps(model, cache, ids, [1, 1, 1])]
        fork, point = cache.fork(), cache.session.snapshot()  # type: ignore[union-attr]
        with torch.no_grad():
            out += [forward(model, one, ids[:, at : at + 1]).logits for one in (cache, fork) for at in (3, 4)]
            fork.truncate(58)
            out.append(forward(model, fork, ids[:, :1]).logits)
            fork.reorder_cache(torch.tensor([1, 0]))
            out.append(forward(model, fork, ids[:, 5:6]).logits)
            cache.session.restore(point)  # type: ignore[union-attr]
            out.append(forward(model, cache, ids[:, 6:7]).logits)
        found.append(torch.cat(out, dim=1))
    assert torch.equal(*found)


@pytest.mark.parametrize("place", ["before", "after"])
def test_an_interrupted_chain_leaves_the_cache_as_it_was(place: str) -> None:
    model, ids = build("qwen3"), tokens(60)
    headwise.fast(model)
    cache = headwise.Cache(model, "h2o(0.5, sinks=2, recent=8)")
    steps(model, cache, ids, [1])
    before, own = held(cache), Chain.run

    def run(self: Chain, *given: object) -> None:
        if place == "after":
            own(self, *given)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with mock.patch.object(Chain, "run", run), pytest.raises(KeyboardInterrupt), torch.no_grad():
        forward(model, cache, ids[:, :1])
    cache.abort()
    assert same(held(cache), before)
    fresh = headwise.Cache(model, "h2o(0.5, sinks=2, recent=8)")
    steps(model, fresh, ids, [1])
    with torch.no_grad():
        assert torch.equal(forward(model, cache, ids[:, :2]).logits, forward(model, fresh, ids[:, :2]).logits)


def test_weights_that_are_exchanged_between_steps_are_those_that_count() -> None:
    model, ids = build("qwen3"), tokens(60)
    headwise.fast(model)
    cache, other = headwise.Cache(model), headwise.Cache(model)
    for one in (cache, other):
        steps(model, one, ids, [1])
    model.model.layers[2].mlp.up_proj.weight.data = model.model.layers[2].mlp.up_proj.weight.data * -1
    with torch.no_grad(), runs() as counts:
        found = [forward(model, cache, ids[:, at : at + 1]).logits for at in (0, 1)]
    assert counts == [2, 1, 4], "the layer that has changed is computed by itself in the first step"
    unlink_layers(layers(model))
    with torch.no_grad():
        assert all(torch.equal(one, forward(model, other, ids[:, at : at + 1]).logits) for at, one in enumerate(found))


def test_a_model_that_reads_between_its_layers_is_told_apart() -> None:
    model, expected_of, ids = build("qwen3"), build("qwen3"), tokens(40)

    class Between(nn.Module):
        """As a model that adds something to what its layers give: a module that a layer's step does not see."""

        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def __getattr__(self, name: str) -> object:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("layer"), name)

        def forward(self, hidden: Tensor, *given: object, **how: object) -> Tensor:
            return self.layer(hidden + 0.1, *given, **how)

    expected_of.model.layers[1] = Between(expected_of.model.layers[1])
    model.model.layers[1] = Between(model.model.layers[1])
    report = headwise.fast(model)
    assert report.compiled == 4 and "reads what a layer gives" in report.apart and report.apart in str(report)
    expected = steps(expected_of, headwise.Cache(expected_of), ids, [1, 2])
    torch.testing.assert_close(steps(model, headwise.Cache(model), ids, [1, 2]), expected, rtol=1e-4, atol=1e-4)


def test_a_forward_that_ends_while_layers_wait_is_refused() -> None:
    model, ids = build("qwen3"), tokens(40)
    headwise.fast(model)
    cache = headwise.Cache(model)
    steps(model, cache, ids, [1])
    whole, model.model.layers = model.model.layers, model.model.layers[:2]
    model.config.num_hidden_layers = 2
    with torch.no_grad(), pytest.raises(SessionError, match=r"had not computed yet.*headwise\.detach"):
        forward(model, cache, ids[:, :1])
    cache.abort()
    model.model.layers, model.config.num_hidden_layers = whole, 4
    with torch.no_grad():
        assert not forward(model, cache, ids[:, :1]).logits.isnan().any()


def test_a_layer_that_selects_is_computed_between_chains() -> None:
    model, ids = build("qwen3"), tokens(160)
    headwise.fast(model)
    plain = headwise.Cache(model).plan
    for apart, expected in ((1, [1, 2]), (0, [3]), (3, [3])):
        rows = [[headwise.Recipe.parse("quest(16, size=8)" if i == apart else "int8")] * 2 for i in range(4)]
        plan = Plan(geometry=plain.geometry, recipes=tuple(map(tuple, rows)))
        headwise.fast(model)
        caches = headwise.Cache(model, plan), headwise.Cache(model, plan)
        with runs() as counts:
            together = steps(model, caches[0], ids, [1, 2, *[1] * 20])
        assert counts[-len(expected) :] == expected and len(counts) >= 20 * len(expected)
        unlink_layers(layers(model))
        assert torch.equal(together, steps(model, caches[1], ids, [1, 2, *[1] * 20]))
        assert same(held(caches[0]), held(caches[1]))


@pytest.mark.parametrize("recipe", ["quest(16, size=8)", "kivi"])
def test_what_cannot_wait_is_found_once(recipe: str) -> None:
    model, ids = build("qwen3"), tokens(90)
    headwise.fast(model)
    with runs() as counts, mock.patch.object(chain, "_prepare", wraps=chain._prepare) as prepare:
        steps(model, headwise.Cache(model, recipe), ids, [1] * 9)
    assert counts == [] and prepare.call_count == 1


@pytest.mark.parametrize("recipe", ["", "h2o(0.5, sinks=2, recent=8)", "snapkv(0.5) | int8"])
def test_drafted_tokens_wait_too_and_are_taken_back(recipe: str) -> None:
    model, ids = build("qwen3"), tokens(80)
    headwise.fast(model)
    found = []
    for linked in (True, False):
        if not linked:
            unlink_layers(layers(model))
        cache = headwise.Cache(model, recipe)
        out = [steps(model, cache, ids, [1])]
        with torch.no_grad(), runs() as counts:
            for kept, tree in ((3, None), (1, None), (5, Tree(range(-1, 4))), (2, None)):
                with cache.drafted(tree):
                    out.append(forward(model, cache, ids[:, :5]).logits)
                cache.accept(range(kept))
            for _ in range(70):
                out.append(forward(model, cache, ids[:, 7:8]).logits)
        assert (counts.count(4) > 60) is linked
        found.append((torch.cat(out, dim=1), held(cache)))
    assert same(*found)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_more_tokens_may_be_drafted_than_a_short_prompt_has(family: str) -> None:
    """They are read as token by token."""
    model, ids = build(family), tokens(3 + 9)
    headwise.fast(model)
    with torch.no_grad():
        one = headwise.Cache(model)
        forward(model, one, ids[:, :3])
        other = one.fork()
        with one.drafted():
            found = forward(model, one, ids[:, 3:]).logits[0]
        one.accept(range(9))
        alone = [forward(model, other, ids[:, at : at + 1]).logits[0, -1] for at in range(3, 12)]
    torch.testing.assert_close(found, torch.stack(alone), rtol=0, atol=1e-5)


def test_generate_writes_as_before_by_one_call_a_token() -> None:
    model, ids = build("qwen3"), tokens(50)
    how = dict(max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None)
    expected = model.generate(ids, **how)
    headwise.fast(model)
    with runs() as counts:
        found = model.generate(ids, **{cache_argument(type(model)): headwise.Cache(model)}, **how)
    assert torch.equal(found, expected) and counts == [4] * 11


@pytest.mark.parametrize("idle", [0, 3])
def test_several_caches_wait_together(idle: int) -> None:
    model = build("qwen3", torch.bfloat16)
    headwise.fast(model)
    recipes = ("", "int8", "snapkv(0.3) | balanced", "streaming(40)", "")
    found = []
    for linked in (True, False):
        if not linked:
            unlink_layers(layers(model))
        caches = [headwise.Cache(model, recipe) for recipe in recipes]
        for row, cache in enumerate(caches):
            steps(model, cache, tokens(40 + 7 * row, seed=row), [1])
        out = []
        with runs() as counts:
            for step in range(80):
                some = caches if step < 60 else caches[1:4]  # two of them are through
                out += step_together(model, some, [step + 1] * len(some), len(some) + idle)
        assert counts == [4] * (80 * linked), "one call each, also where a cache makes room"
        found.append((torch.stack(out), [held(cache) for cache in caches]))
    assert same(*found)


def test_what_a_cache_held_goes_with_it() -> None:
    """At once, and not when cycles are collected: a server counts on these bytes."""
    model, ids = build("qwen3"), tokens(40)
    headwise.fast(model)
    caches = [headwise.Cache(model) for _ in range(3)]
    for cache in caches:
        steps(model, cache, ids, [1, 1])
    step_together(model, caches, [1, 2, 3])
    step_together(model, caches[1:], [1, 2])
    gc.collect()
    gc.disable()
    try:
        for cache in caches:
            cache.abort()
        kept = [weakref.ref(one.session) for one in caches]
        del cache
        caches[1].reset()
        assert kept[1]() is None or caches[0].abreast is not None
        caches.pop(0)
        assert kept[0]() is None and kept[1]() is None
        caches.pop()
        assert kept[2]() is None
    finally:
        gc.enable()
