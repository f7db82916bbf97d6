"""The laws of every experiment: it comes out the same for a seed, its figures are JSON, and its check refuses controls,
wrong implementations and figures of others."""

from __future__ import annotations

import json
from dataclasses import fields
from time import process_time
from typing import Any

import pytest

from headwise.errors import HeadwiseError
from headwise.experiments import EXPERIMENTS, rounded
from headwise.systems import systems
from tests.contract.theory.cases import MUTANTS, figures, made

NAMES = list(EXPERIMENTS.all())
SHOWN = (
    "head_size", "explanations", "passes", "cache_sizes", "deconstructed", "dynamical_systems", "hyper_attention",
    "half_space", "power_reach", "frame_grid", "cost_law", "shared_directions",
    "vocabulary_maps", "dual_encoders", "text_depth", "matching_pursuit", "set_transformer",
    "recurrent_memory", "reweaving", "transnormer", "gaussian_pooling", "complex_positions", "latent_alignment",
    "low_rank_pooling", "several_sources", "efficient_probe", "attention_training", "skim_attention",
    "pair_scores", "pointing", "optimised_attention", "head_embeddings", "score_operator", "diff_qkv",
    "expert_mixture", "head_routing", "graph_adapter",
)  # fmt: skip
MOST_SECONDS = 60.0  # of a processor, for a draw at its small size: generous
every = pytest.mark.parametrize("name", NAMES)


def alike(one: Any, other: Any) -> bool:
    """Whether two draws hold the same figures but for the last digits, in which the order of a sum is seen."""
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(alike(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float):
        return isinstance(other, float) and one == pytest.approx(other, rel=1e-4, abs=1e-6)
    return bool(one == other)


@every
def test_a_card_says_what_readers_need(name: str) -> None:
    cls = EXPERIMENTS.get(name)
    card = cls.card
    assert cls.name == name and cls.parts and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert all((card.title, card.statement, card.paper, card.setting, card.differs)) and card.seconds > 0
    assert "arXiv" in card.paper and not card.statement.endswith(".")
    assert set(card.systems) <= {one.number for one in systems()}
    own = [one.name for one in fields(cls) if one.name not in ("seed", "seeds")]
    assert all(knob in (cls.__doc__ or "") for knob in own), "every knob is described"


@every
def test_parts_have_one_limit_and_a_control_of_their_own(name: str) -> None:
    for part in EXPERIMENTS.get(name).parts:
        assert (part.below is None) != (part.above is None)
        assert part.of != part.control and part.without


@every
def test_figures_are_json_and_hold_every_measure_and_panel(name: str) -> None:
    found = figures(name)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    one = made(name)
    for draw in found["draws"]:
        assert {measure for part in one.parts for measure in (part.of, part.control)} <= set(draw["measures"])
        assert {*draw.get("lines", {}), *draw.get("maps", {})} == set(one.panels)


@every
def test_a_seed_gives_the_same_figures_again_within_its_time(name: str) -> None:
    found, begun = figures(name), process_time()
    again = rounded(made(name).draw(1))
    assert process_time() - begun < MOST_SECONDS
    assert alike(again, found["draws"][1])
    assert not alike(again, found["draws"][0]), "another seed gives other figures"


@every
def test_check_refuses_the_control_in_the_place_of_what_it_controls(name: str) -> None:
    one, found = made(name), figures(name)
    for part in one.parts:
        draws = [{"measures": {**draw["measures"], part.of: draw["measures"][part.control]}} for draw in found["draws"]]
        verdict = one.check({**found, "draws": draws})
        assert next(told for told in verdict["parts"] if told["says"] == part.says)["state"] != "shown"


@every
def test_check_refuses_a_wrong_implementation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert name in MUTANTS, f"plant a wrong implementation of {name} in tests/contract/theory/cases.py"
    measure, plant = MUTANTS[name]
    plant(monkeypatch)
    one = made(name)
    told = next(part for part in one.check(one.run())["parts"] if part["of"] == measure)
    assert told["state"] != "shown", told


@pytest.mark.parametrize("name", [name for name in NAMES if name in SHOWN])
def test_what_needs_no_training_is_shown_at_the_small_size(name: str) -> None:
    parts: dict[str, Any] = {part["of"]: part["state"] for part in made(name).check(figures(name))["parts"]}
    assert parts[MUTANTS[name][0]] == "shown"


def test_check_refuses_figures_of_another() -> None:
    with pytest.raises(HeadwiseError, match="check them with the experiment that made them"):
        made("passes").check({"experiment": "head_size", "draws": []})
