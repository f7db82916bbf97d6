"""A document on a shelf: any mixture of recipes is read as a cache of its own would be."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch

from headwise.calibrate import shelf as shelves
from headwise.calibrate.answers import Answers, answer_score, dense_answers, mixture_score
from headwise.calibrate.shelf import batches
from headwise.errors import PlanError
from headwise.observe import Recall
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import PreTrainedModel, attach
from headwise.seams.transformers.replay import replay
from tests.engine.small import tokens
from tests.seams.transformers import test_chunks, test_sinks
from tests.seams.transformers.unlike import gemma4, llama

SENTENCES = (
    "dense", "int8", "int4", "kivi", "low_rank(bits=4)", "streaming(0.1, recent=8)", "snapkv(0.2, recent=8) | int8",
    "h2o(0.3, recent=8)", "random(0.2, recent=8) | int4", "razor(0.2, recent=8)",
)  # fmt: skip


def recall(lengths: tuple[tuple[int, int], ...] = ((5, 3), (19, 4), (8, 1))) -> Recall:
    asked = tuple((tokens(a, seed=2 + i), tokens(b, seed=9 + i)) for i, (a, b) in enumerate(lengths))
    return Recall(tokens(200), asked)


def sunk() -> PreTrainedModel:
    return test_sinks.build("gpt_oss")


def chunked() -> PreTrainedModel:
    """Without scores that grow with the length, for which Llama 4 counts the padding of a batch of questions too."""
    return test_chunks.build(floor_scale=8192)


@pytest.fixture(scope="module", params=[llama, gemma4, sunk, chunked])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    made: PreTrainedModel = request.param()
    return made


@pytest.fixture(scope="module")
def answers(model: PreTrainedModel) -> Answers:
    return dense_answers(model, recall())


def alike(model: PreTrainedModel, answers: Answers, plan: Plan) -> None:
    ours, real = mixture_score(answers, plan), answer_score(model, plan, answers)
    assert ours.loss == pytest.approx(real.loss, rel=1e-3, abs=1e-6)
    assert (ours.right, ours.kept) == (real.right, real.kept)


@pytest.mark.parametrize("sentence", SENTENCES)
def test_one_recipe_for_all_heads_is_read_as_its_cache_is(
    model: PreTrainedModel, answers: Answers, sentence: str
) -> None:
    alike(model, answers, Plan.uniform(attach(model).geometry, sentence))


def test_any_mixture_is_read_as_its_cache_is(model: PreTrainedModel, answers: Answers) -> None:
    """Nothing that is scored by what all heads of a layer do is among the recipes, so that each is as it is alone."""
    geometry, menu = attach(model).geometry, [Recipe.parse(one) for one in SENTENCES[:7]]
    for seed in range(4):
        draw = Random(seed)
        alike(model, answers, Plan(geometry, tuple(tuple(draw.choices(menu, k=heads)) for heads in geometry.kv_heads)))


def test_a_question_sees_nothing_of_the_others(model: PreTrainedModel) -> None:
    whole, geometry = dense_answers(model, recall()), attach(model).geometry
    for place, pair in enumerate(recall().asked):
        alone = dense_answers(model, Recall(whole.recall.ids, (pair,)))
        assert torch.allclose(alone.expected[0], whole.expected[place], atol=1e-4)
    assert mixture_score(whole, Plan.uniform(geometry, "")).loss < 1e-9


def test_questions_of_like_length_are_put_together() -> None:
    packed = batches(recall(((5, 3), (19, 4), (8, 1), (30, 9), (12, 6))))
    assert [(batch.rows, list(batch.ids.shape)) for batch in packed] == [
        ((0, 2), [2, 8]),
        ((1, 4), [2, 22]),
        ((3,), [1, 38]),
    ]
    assert [said.tolist() for said in packed[0].said] == [[4, 5, 6], [7]]
    assert packed[0].places.tolist() == [4, 5, 6, 7]
    logits = torch.arange(8.0).view(2, 4, 1)
    assert [own.flatten().tolist() for own in packed[0].said_of(logits)] == [[0, 1, 2], [7]]


def test_what_is_no_matter_of_a_head_is_refused(answers: Answers) -> None:
    for sentence in ("quest(16)", "a_shape(1) | int8"):
        with pytest.raises(PlanError, match="head by head"):
            answers.shelf.cache(Recipe.parse(sentence))


def test_the_caches_used_last_are_held(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelves, "CACHES", 2)
    shelf = replace(answers.shelf)
    int8, dense, int4 = map(Recipe.parse, ("int8", "", "int4"))
    first, second = shelf.cache(int8), shelf.cache(dense)
    assert shelf.cache(int8) is first
    shelf.cache(int4)
    assert shelf.cache(int8) is first and shelf.cache(dense) is not second


def test_a_plan_of_more_recipes_than_are_held_makes_each_of_its_caches_once(
    model: PreTrainedModel, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelves, "CACHES", 1)
    geometry, made = attach(model).geometry, list[str]()
    kinds = [Recipe.parse(one) for one in ("int8", "", "int4")]
    rows = tuple(
        tuple(kinds[(layer + head) % 3] for head in range(count)) for layer, count in enumerate(geometry.kv_heads)
    )
    fresh = replace(answers, shelf=replace(answers.shelf))

    def noted(*given: Any) -> None:
        made.append(str(given[2].plan.recipes[0][0]))
        replay(*given)

    monkeypatch.setattr(shelves, "replay", noted)
    mixture_score(fresh, Plan(geometry, rows, attach(model).fingerprint))
    assert sorted(made) == ["dense", "int4", "int8"]


def test_answers_count_where_dense_attention_knows_them(model: PreTrainedModel, answers: Answers) -> None:
    """Where it knows none, as of text that goes on, all of them count."""
    assert answers.known == (False,) * 3 and answers.counted == (True,) * 3 and not answers.tells
    first = answers.recall.asked[2][0], answers.expected[2].argmax(-1)[None]  # one token, after the question alone
    known = dense_answers(model, replace(answers.recall, asked=(answers.recall.asked[0], first)))
    assert known.known == (False, True) == known.counted and known.tells
    found = mixture_score(known, Plan.uniform(attach(model).geometry, "streaming(0.1, recent=8)"))
    alone = dense_answers(model, replace(answers.recall, asked=(first,)))
    assert found.loss == pytest.approx(
        mixture_score(alone, Plan.uniform(attach(model).geometry, "streaming(0.1, recent=8)")).loss, rel=1e-3
    )
    assert found.kept[1] == 1
