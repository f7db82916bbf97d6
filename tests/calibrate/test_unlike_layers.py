"""Calibrations of models whose layers differ: held with room for the most heads, or refused before any work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headwise.calibrate.calibrate import measures
from headwise.calibrate.calibration import Calibration
from headwise.calibrate.measures.heads import heads_plan, recall_plan
from headwise.calibrate.subject import ModelSubject
from headwise.cost.prediction import predicted_bytes
from headwise.errors import HeadwiseError, PlanError, ShapeError
from headwise.observe import GateTraining, Material, Recall
from headwise.plan import Plan
from headwise.seams.transformers.cache import Cache, PreTrainedModel, attach
from headwise.seams.transformers.drive import generate
from tests.engine.ragged import UNLIKE
from tests.engine.small import tokens
from tests.seams.transformers.unlike import gemma4, llama

# and by query heads of a KV head
BY_WIDTH = ("seer", "dhsa", "nats", "keys", "queries", "retrieval", "induction", "query_statistics", "kvzap", "outputs")


def material(model: PreTrainedModel) -> Material:
    def recall(count: int) -> Recall:
        ids = tokens(count, seed=count)
        return Recall(ids, ((ids[:, 10:14], ids[:, 14:17]),))

    ladder = [recall(count) for count in (80, 120, 240)]
    return Material(
        ModelSubject(model),
        [tokens(240)],
        ladder[-1:],
        ladder,
        training=GateTraining(4, 32, 2),
        density=1.0,
        block_steps=3,
        type_steps=2,
    )


def measured(model: PreTrainedModel, *names: str) -> Calibration:
    seam, found = attach(model), material(model)
    calibration = Calibration(seam.geometry, seam.fingerprint, "")
    for name in names:
        calibration = calibration.adding(name, *measures()[name].run(found, lambda done, total: None))
    return calibration


def test_all_that_is_measured_of_unlike_heads_has_room_for_the_most(tmp_path: Path) -> None:
    model = llama()
    calibration = measured(model, *(name for name in measures() if name not in BY_WIDTH))
    calibration.save(tmp_path / "a.calibration")
    assert Calibration.load(tmp_path / "a.calibration").geometry == calibration.geometry
    there = calibration.geometry.there
    assert there.sum(1).tolist() == [2, 4, 1, 3]
    by_head = {name: one for name, one in calibration.tensors.items() if one.shape[:2] == there.shape}
    assert {"duo.gates", "sale.threshold", "moa.spans", "head_losses", "attention_by_distance"} <= by_head.keys()
    assert all(one.isfinite().all() and bool(one[there].any()) for one in by_head.values())
    assert calibration.tensors["attention_by_distance"].sum((2, 3))[there].gt(0).all()
    for recipe in ("duo(40, sinks=4, recent=32, sparsity=0.5)", "moa", "sale"):
        plan = calibration.into(Plan.uniform(calibration.geometry, recipe, calibration.model))
        assert generate(model, Cache(model, plan), tokens(100), 3).shape == (1, 3)


@pytest.mark.parametrize("name", BY_WIDTH)
def test_what_is_measured_by_one_width_is_refused_where_there_are_several(name: str) -> None:
    with pytest.raises(ShapeError, match="in different layers that attend to everything"):
        measured(llama(), name)


def test_widths_of_sliding_layers_may_be_others() -> None:
    model = gemma4()
    calibration = measured(model, "seer", "dhsa", "nats", "keys", "queries", "gates", "ablation")
    shapes = {name: tuple(one.shape[2:]) for name, one in calibration.tensors.items() if "." in name}
    assert shapes["seer.query"] == (2, 32, 32) and shapes["loki.basis"] == (32, 32)
    assert shapes["q_filters.direction"] == (32,) and shapes["nats.head"] == (33, 3)
    assert all(one.shape[:2] == (4, 4) for name, one in calibration.tensors.items() if "." in name)
    assert (calibration.tensors["q_filters.direction"].norm(dim=-1) > 0.1).nonzero().tolist() == [
        [1, 0],
        [1, 1],
        [3, 0],
        [3, 1],
    ]
    for recipe in ("q_filters(0.5)", "loki(16)", "seer(0.5)", "nats(0.5)"):
        plan = calibration.into(Plan.uniform(calibration.geometry, recipe, calibration.model))
        assert generate(model, Cache(model, plan), tokens(100), 3).shape == (1, 3)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 1.0])
def test_heads_that_recall_are_kept_within_the_bytes_by_what_each_holds(share: float) -> None:
    shape = replace(UNLIKE, layers=(*UNLIKE.layers[:2], UNLIKE.layers[3]))
    losses = torch.rand(3, 3, generator=torch.Generator().manual_seed(1)).masked_fill(~shape.there, 100.0)
    plan = recall_plan(shape, losses, share)
    assert [len(row) for row in plan.recipes] == [2, 3, 1]
    held = predicted_bytes(plan, 4096, torch.bfloat16)
    assert 0.9 * share <= held / shape.dense_bytes(4096, torch.bfloat16) <= 1.01 * share
    best = heads_plan(shape, losses, 1, "streaming(64)").recipes
    place = losses.masked_fill(~shape.there, 0.0).argmax().item()
    assert [(i, j) for i, row in enumerate(best) for j, r in enumerate(row) if not r.evict] == [divmod(place, 3)]
    with pytest.raises(PlanError, match="7 heads cannot be kept whole, the model has 6 KV heads"):
        heads_plan(shape, losses, 7, "streaming(64)")
    with pytest.raises(HeadwiseError, match="calibrate this model"):
        heads_plan(shape, losses[:, :2], 1, "streaming(64)")
