"""A budget in bytes is a bound: what the storages hold after a prompt is at most that, and little less."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headwise.engine.budget import in_tokens
from headwise.engine.group import DECODE_INTERVAL
from headwise.engine.persist import load_session, save_session
from headwise.engine.session import Session
from headwise.errors import HeadwiseError, PlanError
from headwise.geometry import Geometry
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.shapes import Amount
from tests.contract.drive import Text, decode, everything, geometry, kept, prefill, run, small
from tests.contract.test_counts import storages

EVICTING = [name for name in everything() if small(name).evict is not None]
LIMIT, PROMPT = 256 * 1024, 1300


def sized(name: str, amount: str) -> Recipe:
    """The small recipe of a method with its eviction budget in bytes."""
    recipe = small(name)
    return replace(recipe, evict=replace(recipe.evict, budget=amount))


def held(session: Session) -> int:
    """Bytes of all storages that the session's groups reach; what a selection notes comes on top."""
    return sum(storages(session.layers, {}, set()).values())


@pytest.mark.parametrize("name", EVICTING)
def test_what_is_held_is_at_most_the_bytes_and_nine_tenths_of_them(name: str) -> None:
    recipe = sized(name, "256KiB")
    session, _ = run(geometry(), recipe, Text.random(geometry(), PROMPT), [700, PROMPT - 700], 0)
    assert session.ledger.evictions or recipe.compress is not None
    assert held(session) <= LIMIT
    if recipe.compress is None or len(recipe.compress.levels) == 1:  # of several levels the count is an upper bound
        assert held(session) >= 0.9 * LIMIT


@pytest.mark.parametrize("name", EVICTING)
def test_a_recipe_in_bytes_is_one_in_tokens(name: str) -> None:
    recipe = sized(name, "128KiB")
    assert Recipe.parse(str(recipe)) == recipe
    found = in_tokens(Plan.uniform(geometry(), recipe), torch.float32).recipes[0][0]
    assert replace(found, evict=replace(found.evict, budget="128KiB")) == recipe
    text = Text.random(geometry(), 400)
    ours, theirs = (run(geometry(), one, text, [400], 0)[0] for one in (recipe, found))
    assert kept(ours) == kept(theirs)
    assert f"'{recipe}' keeps {found.evict.amount} tokens" in ours.report()


def test_a_prompt_of_any_length_stays_within() -> None:
    for recipe in ("tova('48KiB', recent=6) | pyramid(8)", "h2o('48KiB', recent=6) | ada", "tova('48KiB') | kivi"):
        for tokens in (20, 60, 90, 130, 500):
            session, _ = run(geometry(), Recipe.parse(recipe), Text.random(geometry(), tokens), [tokens], 0)
            assert held(session) <= 48 * 1024, (recipe, tokens)
    whole, _ = run(geometry(), Recipe.parse("tova('48KiB')"), Text.random(geometry(), 40), [40], 0)
    assert not whole.ledger.evictions, "what fits is not evicted from"


def test_bytes_are_of_one_sequence_and_of_the_element_type() -> None:
    def counts(rows: int, dtype: torch.dtype) -> set[int]:
        text = Text.random(geometry(), 600, rows=rows, dtype=dtype)
        session, _ = run(geometry(), Recipe.parse("streaming('64KiB', recent=6)"), text, [600], 0)
        assert held(session) <= rows * 64 * 1024
        return set(session.lengths(0).flatten().tolist())

    assert counts(1, torch.float32) == counts(3, torch.float32) == {80}
    assert counts(1, torch.bfloat16) == {160}


def test_new_tokens_lie_on_top_until_the_next_eviction() -> None:
    text = Text.random(geometry(), 900)
    session = Session(Plan.uniform(geometry(), "snapkv('64KiB', recent=6) | int8"))
    prefill(session, text, [300])
    token = session.nbytes() / int(session.lengths(0).sum() + session.lengths(1).sum())
    for step in range(600):
        decode(session, text, 300 + step, 1)
        assert session.nbytes() <= 64 * 1024 + 4 * (DECODE_INTERVAL + 16) * token
        if session.clock["since_eviction"] == 0:
            assert session.nbytes() <= 64 * 1024


def test_each_recipe_of_a_plan_has_its_own_bytes() -> None:
    """Of its own heads alone, of all layers; spans are part of it, and so are heads that a calibration leaves whole."""
    shape = geometry()
    one, two = Recipe.parse("tova('48KiB', recent=6)"), Recipe.parse("streaming('16KiB', recent=6) | int8")
    plan = Plan(shape, ((one, two), (one, one)), spans=((10, 30),))
    session = Session(plan)
    prefill(session, Text.random(shape, 700), [700])
    by_recipe: dict[str, int] = {}
    for group in session.groups:
        name = group.recipe.evict.name
        by_recipe[name] = by_recipe.get(name, 0) + sum(storages(group.store, {}, set()).values())
    assert 0.9 * 48 * 1024 <= by_recipe["tova"] <= 48 * 1024
    assert 0.9 * 16 * 1024 <= by_recipe["streaming"] <= 16 * 1024

    gates = {"duo.gates": torch.tensor([[1.0, 0.0], [0.0, 0.0]])}
    duo = Recipe.parse("duo('1MiB', sinks=2, recent=6, sparsity=0.75)")
    session = Session(Plan(shape, Plan.uniform(shape, duo).recipes, calibration=gates))
    prefill(session, Text.random(shape, 4096), [4096])
    assert session.lengths(0)[0, 0] == 4096 > session.lengths(0)[0, 1]
    assert 0.9 * 2**20 <= held(session) <= 2**20


def test_windows_of_sliding_layers_count() -> None:
    shape = geometry(windows=(64, None))
    session, _ = run(shape, Recipe.parse("streaming('64KiB', recent=6)"), Text.random(shape, 600), [600], 0)
    assert set(session.lengths(1).flatten().tolist()) == {96}
    assert 0.9 * 64 * 1024 <= held(session) <= 64 * 1024


@pytest.mark.parametrize("recipe", ["snapkv('8KiB')", "h2o('9000B', sinks=0, recent=100) | ada | int8", "raas('1KB')"])
def test_fewer_bytes_than_protected_tokens_take_are_refused_naming_the_least(recipe: str) -> None:
    with pytest.raises(PlanError, match=r"takes at least .* always stay .* give '\d+KiB' or more") as refused:
        Session(Plan.uniform(geometry(), recipe))
    least = int(str(refused.value).partition("give '")[2].partition("KiB")[0])
    parsed = Recipe.parse(recipe)

    def opened(kib: int) -> Session:
        return Session(Plan.uniform(geometry(), replace(parsed, evict=replace(parsed.evict, budget=f"{kib}KiB"))))

    opened(least)
    with pytest.raises(PlanError):
        opened(least - 1)


@pytest.mark.parametrize(
    ("sentence", "says"),
    [
        ("quest('2MiB')", "a selection holds nothing, it reads tokens; give a share"),
        ("exact_topk('64KiB')", "tokens such as 1024, and bytes to an eviction"),
        ("snapkv('64 parrots')", "write it like 512MiB"),
        ("snapkv('0B')", "keeps nothing"),
        ("snapkv('')", "is not an amount of memory"),
    ],
)
def test_bytes_that_mean_nothing_are_refused(sentence: str, says: str) -> None:
    with pytest.raises(HeadwiseError, match=says):
        Recipe.parse(sentence)


def test_bytes_are_no_count_before_a_session_has_them() -> None:
    with pytest.raises(HeadwiseError, match="in_tokens"):
        Amount.of("2MiB").tokens_of(100)
    assert [str(Amount.of(one)) for one in ("64MiB", "1.5GiB", "1000KB", "77B")] == [
        "64MiB", "1536MiB", "1000000B", "77B",
    ]  # fmt: skip


def test_a_saved_session_goes_on_under_its_bytes(tmp_path: Path) -> None:
    text = Text.random(geometry(), 500)
    plan = Plan.uniform(geometry(), "tova('48KiB', recent=6)")
    plan.save(tmp_path / "a.plan")
    session = Session(Plan.load(tmp_path / "a.plan"))
    prefill(session, text, [300])
    save_session(session, tmp_path / "session")
    loaded, _ = load_session(tmp_path / "session", plan)
    for one in (session, loaded):
        decode(one, text, 300, 100)
    assert kept(loaded) == kept(session)


def test_a_model_without_a_known_length_takes_bytes() -> None:
    shape = Geometry.uniform(4, 2, 32, 16, (None, None), 2**31)
    found = in_tokens(Plan.uniform(shape, "streaming(64KiB, sinks=2, recent=6)"), torch.float32)
    assert found.recipes[0][0].evict.amount.tokens == 80
