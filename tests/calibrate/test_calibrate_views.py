"""Calibrations on a tiny model: what is measured is true, and reaches the methods through a plan."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import headwise
from headwise.calibrate.measures.keys import calibrated, key_calibration
from headwise.calibrate.measures.patterns import candidates, pattern_errors, pattern_plan
from headwise.calibrate.subject import ModelSubject
from headwise.errors import HeadwiseError, PlanError
from headwise.methods.evict.expected_attention.measure import query_statistics
from headwise.methods.evict.kvzap.measure import surrogate
from headwise.methods.evict.q_filters import query_calibration
from headwise.methods.prefill.sale.measure import sale_thresholds
from headwise.methods.prefill.seer import untrained
from headwise.methods.prefill.seer.measure import block_attention, gate_loss, lessons, seer_calibration
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import attach
from headwise.seams.transformers.drive import feed, prefill
from tests import tiny
from tests.methods.views import make_view


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny.build(tmp_path_factory.mktemp("model"))).eval()


@pytest.fixture(scope="module")
def subject(model: PreTrainedModel) -> ModelSubject:
    return ModelSubject(model)


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(2, 512, (1, 300), generator=torch.Generator().manual_seed(0))


def test_bases_are_the_principal_directions_of_the_stored_keys(
    model: PreTrainedModel, subject: ModelSubject, ids: torch.Tensor
) -> None:
    tensors = key_calibration(subject, [ids])
    cache = headwise.Cache(model, "")
    prefill(model, cache, ids, None)
    assert cache.session is not None
    for layer in range(3):
        keys = cache.session.stores(layer)[0].segment(0, 2).keys.double()
        for head in range(2):
            basis = tensors["loki.basis"][layer, head].double()
            torch.testing.assert_close(basis.T @ basis, torch.eye(16, dtype=torch.float64), atol=1e-5, rtol=0)
            spread = torch.cov(keys[head].T)
            variances = torch.einsum("dr,de,er->r", basis, spread, basis)
            largest = torch.linalg.eigvalsh(spread).flip(0)
            torch.testing.assert_close(variances, largest, atol=1e-4, rtol=1e-2)


def test_directions_are_those_of_most_of_the_queries(
    model: PreTrainedModel, subject: ModelSubject, ids: torch.Tensor
) -> None:
    """Equal to what the method finds of the same text's queries by itself, as scores; other texts turn it."""
    direction = query_calibration(subject, [ids])["q_filters.direction"]
    assert direction.shape == (3, 2, 16)
    plan = Plan.uniform(attach(model).geometry, "q_filters(60, memory=300)")
    other = query_calibration(subject, [ids.flip(1)])["q_filters.direction"]
    kept = []
    for tensors in ({}, {"q_filters.direction": direction}, {"q_filters.direction": -other}):
        cache = headwise.Cache(model, calibrated(plan, tensors))
        prefill(model, cache, ids, None)
        assert cache.session is not None
        kept.append([set(cache.session.positions(layer, 0, head).tolist()) for layer in range(3) for head in range(2)])
    assert kept[0] == kept[1] != kept[2]


def test_statistics_of_the_prompt_itself_keep_what_its_queries_keep(
    model: PreTrainedModel, subject: ModelSubject, ids: torch.Tensor
) -> None:
    plan = Plan.uniform(attach(model).geometry, "expected_attention(60, memory=300)")
    found = []
    for tensors in ({}, query_statistics(subject, [ids]), query_statistics(subject, [ids.flip(1), ids])):
        cache = headwise.Cache(model, calibrated(plan, tensors))
        prefill(model, cache, ids, None)
        found.append([cache.session.positions(layer, 0, head).tolist() for layer in range(3) for head in range(2)])
    same = [len(set(a) & set(b)) / 60 for a, b in zip(found[0], found[1], strict=True)]
    assert min(same) > 0.95
    assert found[2] != found[1]


def test_kvzap_is_the_least_squares_fit_of_what_a_repetition_attends_to(
    model: PreTrainedModel, subject: ModelSubject, ids: torch.Tensor
) -> None:
    """Kept sets come nearer to KVzip's, on the text it was fitted to, than the shortest keys do."""
    geometry, tensors = attach(model).geometry, surrogate(subject, [ids])
    assert {name: tuple(one.shape) for name, one in tensors.items()} == {
        "kvzap.key": (3, 2, 16), "kvzap.value": (3, 2, 16), "kvzap.rest": (3, 2, 3),
    }  # fmt: skip
    kept = []
    for plan in (
        Plan.uniform(geometry, "kvzip(100, sinks=0, recent=0)"),
        calibrated(Plan.uniform(geometry, "kvzap(100, sinks=0, recent=0)"), tensors),
        Plan.uniform(geometry, "kvzap(100, sinks=0, recent=0)"),
    ):
        cache = headwise.Cache(model, plan)
        prefill(model, cache, ids, None)
        kept.append([set(cache.session.positions(layer, 0, head).tolist()) for layer in range(3) for head in range(2)])
    fitted, unfitted = (sum(len(a & b) for a, b in zip(kept[0], one, strict=True)) for one in kept[1:])
    print(f"tokens kept as kvzip does, of 600: fitted {fitted}, shortest keys {unfitted}")
    assert fitted > unfitted + 60


def test_a_plan_carries_a_calibration_to_the_method(
    model: PreTrainedModel, subject: ModelSubject, ids: torch.Tensor, tmp_path: Path
) -> None:
    """A basis of calibrated documents reads other tokens than the prompt's own; file and digest hold it."""
    plan = Plan.uniform(attach(model).geometry, "loki(8, sinks=0, recent=1, channels=0.125)")
    other = torch.randint(2, 512, (1, 300), generator=torch.Generator().manual_seed(1))
    told = calibrated(plan, key_calibration(subject, [other]))
    told.save(tmp_path / "plan")
    assert told.digest != plan.digest == Plan.load(tmp_path / "plan").digest.replace(told.digest, plan.digest)
    logits = []
    for one in (plan, told, Plan.load(tmp_path / "plan")):
        cache = headwise.Cache(model, one)
        prefill(model, cache, ids, None)
        logits.append(feed(model, cache, ids[:, :1]))
    assert torch.equal(logits[1], logits[2])
    assert not torch.equal(logits[0], logits[1])


def test_nothing_to_calibrate_on_is_refused(subject: ModelSubject) -> None:
    with pytest.raises(HeadwiseError, match="at least one document"):
        key_calibration(subject, [])
    with pytest.raises(PlanError, match="snapkv"):
        pattern_errors(subject, [Recipe.parse("snapkv(0.2)")], [])


def test_candidates_cost_alike(model: PreTrainedModel) -> None:
    view = make_view(2000, h=1, g=1)
    densities = [Recipe.parse(one).prefill.where(view).density(2000, 2000) for one in candidates(2000, 0.2)]
    assert all(0.12 < density < 0.3 for density in densities), densities


def test_each_head_gets_its_pattern_of_least_error(
    model: PreTrainedModel, subject: ModelSubject, ids: torch.Tensor
) -> None:
    recipes = [*map(Recipe.parse, candidates(300, 0.3)), Recipe.parse("a_shape(0, window=300)")]
    errors = pattern_errors(subject, recipes, [ids])
    assert errors.shape == (6, 3, 2)
    assert float(errors[-1].max()) < 1e-6, "a window over everything is dense"
    assert (errors[:-1] > 0).all()
    plan = pattern_plan(subject, recipes[:-1], [ids])
    for layer in range(3):
        for head in range(2):
            assert plan.recipes[layer][head] == recipes[int(errors[:-1, layer, head].argmin())]
    cache = headwise.Cache(model, plan)
    assert prefill(model, cache, ids, None).isfinite().all()


def test_gates_learn_what_the_model_attends_to(subject: ModelSubject, ids: torch.Tensor) -> None:
    tensors = seer_calibration(subject, [ids], size=16, steps=60, rate=1e-2)
    assert tensors["seer.query"].shape == (3, 2, 2, 16, 16) and tensors["seer.key"].shape == (3, 2, 48, 16)
    for layer, (lesson,) in lessons(subject, [ids], 16).items():
        assert lesson.target.shape == (2, 2, 19, 19)
        torch.testing.assert_close(lesson.target.sum(-1), torch.ones(2, 2, 19))
        trained = {name: tensors[f"seer.{name}"][layer] for name in ("query", "key")}
        before, after = (float(gate_loss(16, lesson, one)) for one in (untrained(lesson.queries), trained))
        assert 0 < after < 0.9 * before


def test_targets_of_gates_are_maxima_of_attention(model: PreTrainedModel) -> None:
    view = make_view(96)
    peaks = view.observe(96).unflatten(2, (6, 16)).unflatten(4, (6, 16)).amax((3, 5))
    torch.testing.assert_close(block_attention(view, 16), peaks / peaks.sum(-1, keepdim=True))


def test_sale_thresholds_bound_the_error(subject: ModelSubject, ids: torch.Tensor) -> None:
    loose, strict = (sale_thresholds(subject, [ids], error, most=0.5)["sale.threshold"] for error in (0.2, 1e-3))
    assert loose.shape == strict.shape == (3, 2)
    assert (strict <= loose).all() and (strict < loose).any()
    steps = [0.0, *(0.5 / 2**i for i in range(8))]
    assert all(min(abs(float(x) - one) for one in steps) < 1e-6 for x in torch.cat((loose, strict)).flatten())
