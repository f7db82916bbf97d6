"""From a model to a plan: bytes are held, what is predicted is what is held, a killed measurement goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headwise.calibrate.answers import answer_score, dense_answers
from headwise.calibrate.sensitivity import _Tangent, harm, traces
from headwise.cost.pace import primed, token_seconds
from headwise.cost.prediction import predicted_bytes
from headwise.engine.session import Session
from headwise.errors import HeadwiseError, PlanError
from headwise.observe import Recall
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import Cache, PreTrainedModel, attach
from headwise.seams.transformers.drive import prefill
from headwise.seams.transformers.forward import forward
from headwise.seams.transformers.load import load_model
from headwise.tune import table as tables
from headwise.tune import tuner as tuners
from headwise.tune.outcome import find
from headwise.tune.table import Table, measure
from headwise.tune.tuner import Tuner, front
from tests.tiny import build

MENU = tuple(map(Recipe.parse, ("dense", "int4", "streaming(0.1)", "snapkv(0.2)", "snapkv(0.2) | int8")))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    torch.set_num_threads(1)
    return load_model(build(tmp_path_factory.mktemp("tiny")), "float32")


@pytest.fixture(scope="module")
def recalls() -> list[Recall]:
    draw = torch.Generator().manual_seed(0)

    def some(count: int) -> torch.Tensor:
        return torch.randint(2, 512, (1, count), generator=draw)

    return [Recall(some(300), ((some(20), some(5)), (some(7), some(3)))) for _ in range(2)]


def quiet(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def tuner(model: PreTrainedModel, recalls: list[Recall], tmp_path_factory: pytest.TempPathFactory) -> Tuner:
    table = measure(model, recalls, MENU, tmp_path_factory.mktemp("tables"), quiet)
    return Tuner(model, [dense_answers(model, recall) for recall in recalls], table, 300)


def test_dense_heads_cost_nothing_and_every_other_recipe_costs_something(tuner: Tuner) -> None:
    assert tuner.table.losses[0].abs().max() < 1e-5
    assert (tuner.table.losses[1:].sum((1, 2)) > 1e-3).all()


def test_the_estimate_is_the_first_order_of_the_true_loss(model: PreTrainedModel, recalls: list[Recall]) -> None:
    """With one answer token and a small change of one head, the loss moves by what the gradient says."""
    one = Recall(recalls[0].ids, ((recalls[0].asked[0][0][:, :1], recalls[0].asked[0][1][:, :1]),))
    answers = dense_answers(model, one)
    trace = next(iter(traces(answers)))
    step = 1e-2 * trace.gradients[-1].sign()

    class Moved(_Tangent):
        def attend(self, layer, *rest):  # type: ignore[no-untyped-def]
            out = super().attend(layer, *rest)
            return out + step if layer == 2 else out

    def loss(cache: _Tangent) -> float:
        question, answer = one.asked[0]
        logits = forward(model, cache, question).logits[0, -1:]
        return torch.nn.functional.cross_entropy(logits, answer[0]).item()

    moved = loss(Moved(answers.shelf)) - loss(_Tangent(answers.shelf))
    assert moved == pytest.approx(float((trace.gradients[-1] * step).sum()), rel=0.05)


def test_heads_are_judged_alone(model: PreTrainedModel, recalls: list[Recall]) -> None:
    answers = dense_answers(model, recalls[0])
    found = harm(answers, list(traces(answers)), Recipe.parse("streaming(0.1)"))
    assert found.shape == (3, 2) and (found > 0).all()


@pytest.mark.parametrize("sentence", [str(recipe) for recipe in MENU])
def test_attending_to_the_prompt_again_would_change_no_bit(
    model: PreTrainedModel, recalls: list[Recall], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, plan = Recipe.parse(sentence), Plan.uniform(attach(model).geometry, sentence)
    answers = dense_answers(model, recalls[0])
    asked = list(traces(answers))
    lost, answered = harm(answers, asked, recipe), answer_score(model, plan, answers)
    attended: list[int] = []

    def attends(session: Session, layer: int, *qkv: torch.Tensor, **how: float) -> None:
        attended.append(layer)
        session.step(layer, *qkv, **how)  # type: ignore[misc]

    monkeypatch.setattr(Session, "absorb", attends)
    answers = replace(answers, shelf=replace(answers.shelf))
    assert torch.equal(harm(answers, asked, recipe), lost)
    assert answer_score(model, plan, answers) == answered
    assert attended == [0, 1, 2] * 2


def test_a_chosen_plan_holds_what_was_allowed(tuner: Tuner, model: PreTrainedModel, recalls: list[Recall]) -> None:
    budget = tuner.dense_bytes // 3
    plan = tuner.chosen(budget)
    trial = tuner.trial("tuned", "one", plan)
    cache = Cache(model, plan)
    prefill(model, cache, recalls[0].ids, None)
    assert trial.held <= budget
    assert cache.nbytes <= budget
    places = [(tuner.place(plan, i, j), i, j) for i, row in enumerate(plan.recipes) for j in range(len(row))]
    assert sum(tuner.costs()[place, layer] for place, layer, _ in places) == trial.held
    assert trial.predicted == pytest.approx(sum(float(tuner.table.losses[place]) for place in places))


def test_less_is_lost_with_more_bytes_by_the_table(tuner: Tuner) -> None:
    lost = [
        tuner.trial("tuned", "", tuner.chosen(int(share * tuner.dense_bytes))).predicted for share in (0.25, 0.5, 1)
    ]
    assert lost[0] >= lost[1] >= lost[2]  # type: ignore[operator]


def test_what_is_taken_loses_least_of_all_that_fits(tuner: Tuner) -> None:
    budget = tuner.dense_bytes // 3
    outcome = find(tuner, budget, None, quiet)
    fitting = [one for one in outcome.trials if one.held <= budget]
    assert outcome.chosen.loss == min(one.loss for one in fitting)
    assert {one.role for one in outcome.trials} == {"dense", "tuned", "rival"}
    line = front(outcome.trials)
    assert [one.held for one in line] == sorted(one.held for one in line)
    assert [one.loss for one in line] == sorted((one.loss for one in line), reverse=True)
    assert outcome.plan.quality["tune"]["chosen"]["plan"] == outcome.plan.digest
    assert outcome.trials[0].loss < 1e-6


def test_a_quality_takes_the_fewest_bytes_that_reach_it(tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = find(tuner, tuner.dense_bytes // 3, 0.0, quiet)
    assert outcome.chosen.held == min(one.held for one in outcome.trials)
    dense = replace(outcome.trials[0], right=1.0)
    monkeypatch.setattr(Tuner, "trial", lambda self, role, name, plan: dense if role == "dense" else outcome.chosen)
    with pytest.raises(PlanError, match="lower --quality"):
        find(tuner, tuner.dense_bytes // 3, 0.5, quiet)


@pytest.fixture
def by_the_byte(tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> Tuner:
    """On a machine where a token takes a nanosecond for every byte held."""
    pace = lambda model, plan, tokens: 1e-9 * predicted_bytes(plan, tokens, model.dtype)  # noqa: E731
    monkeypatch.setattr(tuners, "token_seconds", pace)
    return replace(tuner)


def test_time_takes_the_most_bytes_that_are_quick_enough(by_the_byte: Tuner) -> None:
    third = by_the_byte.dense_bytes // 3
    found = find(by_the_byte, by_the_byte.dense_bytes, None, quiet, 1e-9 * third)
    assert abs(found.budget - third) < by_the_byte.dense_bytes // 16  # plans leave a few bytes idle
    assert found.chosen.held <= third and found.seconds == (1e-9 * third, 1e-9 * found.chosen.held)
    assert found.plan.quality["tune"]["seconds"]["taken"] == found.seconds[1]
    assert by_the_byte.affordable(third, 1.0) == third, "bytes are the tighter bound"
    slow = by_the_byte.trial("dense", "dense", Plan.uniform(by_the_byte.seam.geometry, ""))
    fewest = find(by_the_byte, third, 0.0, quiet, 1e-9 * third)
    assert fewest.chosen.held < third < slow.held


def test_too_little_time_is_refused_with_what_would_do(by_the_byte: Tuner) -> None:
    with pytest.raises(PlanError, match=r"more than --time 1e-06ms; give .*ms or more"):
        find(by_the_byte, by_the_byte.dense_bytes, None, quiet, 1e-9)


@pytest.mark.parametrize("sentence", [*map(str, MENU), "h2o(0.2)", "quest(0.5)"])
def test_a_primed_cache_holds_what_a_prompt_leaves(model: PreTrainedModel, sentence: str) -> None:
    plan, prompt = Plan.uniform(attach(model).geometry, sentence), torch.randint(2, 512, (1, 300))
    read = Cache(model, plan)
    prefill(model, read, prompt, None)
    cache = primed(model, plan, 300)
    assert cache.nbytes == read.nbytes and cache.get_seq_length() == 300
    assert token_seconds(model, plan, 300) > 0


def test_a_killed_measurement_goes_on_where_it_was(
    model: PreTrainedModel, recalls: list[Recall], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    menu, whole = MENU[2:4], measure(model, recalls, MENU[2:4], tmp_path / "whole", quiet)
    calls: list[Recipe] = []
    real = tables.harm

    def killed(answers, asked, recipe):  # type: ignore[no-untyped-def]
        calls.append(recipe)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(answers, asked, recipe)

    monkeypatch.setattr(tables, "harm", killed)
    with pytest.raises(KeyboardInterrupt):
        measure(model, recalls, menu, tmp_path / "cut", quiet)
    again = measure(model, recalls, menu, tmp_path / "cut", quiet)
    assert len(calls) == 6  # four before the kill, and both recipes of the second document
    assert torch.equal(again.losses, whole.losses)


def test_what_cannot_be_judged_by_head_is_refused(tuner: Tuner, recalls: list[Recall], tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="one head's cache"):
        measure(tuner.model, recalls, [Recipe.parse("snapkv(0.2) | ada")], tmp_path, quiet)
    with pytest.raises(PlanError, match="selections"):
        measure(tuner.model, recalls, [Recipe.parse("quest(64)")], tmp_path, quiet)
    with pytest.raises(PlanError, match="each once"):
        measure(tuner.model, recalls, [Recipe(), Recipe()], tmp_path, quiet)
    with pytest.raises(HeadwiseError, match="at least one question"):
        measure(tuner.model, [], [Recipe()], tmp_path, quiet)


def test_dense_tells_what_dense_told(model: PreTrainedModel, recalls: list[Recall]) -> None:
    found = answer_score(model, "", dense_answers(model, recalls[0]))
    assert found.loss < 1e-9 and found.right == 0.0
    assert answer_score(model, "streaming(0.1)", dense_answers(model, recalls[0])).loss > 1e-3


def test_a_table_keeps_its_menu(tuner: Tuner) -> None:
    assert isinstance(tuner.table, Table) and tuner.table.menu == MENU


def test_rivals_keep_the_same_share_of_every_document(tuner: Tuner) -> None:
    budget = tuner.dense_bytes // 3
    for role, name, plan in tuner.contenders(budget):
        if role == "rival":
            evict = plan.recipes[0][0].evict
            assert evict is None or evict.amount.share is not None, name
            assert tuner.trial(role, name, plan).held <= budget, name


def test_calibration_is_shown_and_goes_into_the_plan(
    model: PreTrainedModel, recalls: list[Recall], tmp_path: Path
) -> None:
    told = {"q_filters.direction": torch.ones(3, 2, 16)}
    menu = (Recipe(), Recipe.parse("q_filters(0.2)"))
    table = measure(model, recalls[:1], menu, tmp_path, quiet, 0, told)
    measure(model, recalls[:1], menu, tmp_path, quiet)
    assert len(list(tmp_path.iterdir())) == 2, "a table is of one calibration"
    tuner = Tuner(model, [dense_answers(model, recalls[0], calibration=told)], table, 300, calibration=told)
    plan = find(tuner, tuner.dense_bytes, None, quiet).plan
    assert torch.equal(plan.calibration["q_filters.direction"], told["q_filters.direction"])
