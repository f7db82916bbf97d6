"""Geometry by layer: what files say of it, and what is held for every head of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from headwise.errors import PlanError, ShapeError
from headwise.files import write_tensors
from headwise.geometry import Geometry, GeometryFacts, LayerGeometry, layers_of
from headwise.plan import FORMAT, Plan
from headwise.schema import checked_json
from tests.engine.ragged import UNLIKE, drawn


def again(shape: Geometry) -> Geometry:
    """A geometry as a file gives it back."""
    return checked_json(GeometryFacts, json.dumps(shape.describe()), "it", ShapeError, "").geometry()


@pytest.mark.parametrize("seed", range(20))
def test_any_geometry_comes_back_from_what_is_said_of_it(seed: int) -> None:
    assert again(drawn(seed)) == drawn(seed)
    other = [
        replace(layer, query_heads=4, kv_heads=1, value_width=16, kind="latent", window=8, chunked=True, sinks=True)
        for layer in drawn(1).layers
    ]
    assert again(Geometry(tuple(other), 99)) == Geometry(tuple(other), 99)


def test_layers_alike_are_said_once_in_the_words_of_older_files() -> None:
    shape = Geometry.uniform(8, 2, 64, 32, (None, 512, None), 4096)
    assert shape.describe() == {
        "layers": 3, "query_heads": 8, "kv_heads": 2, "key_width": 64, "value_width": 32, "windows": [None, 512, None],
        "max_positions": 4096,
    }  # fmt: skip
    assert again(shape) == shape
    assert UNLIKE.describe()["kv_heads"] == [2, 3, 4, 1] and "chunked" not in UNLIKE.describe()
    assert layers_of(shape.kv_heads) == "3 layers of 2" and layers_of((4, 1, 4)) == "3 layers of 1 or 4"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"windows": [None]}, "window is told of 1 layers, there are 4"),
        ({"layers": 2**31 - 1}, "is told of 4 layers, there are 2147483647"),
        ({"kv_heads": [2, 3]}, "kv_heads is told of 2 layers, there are 4"),
        ({"kv_heads": []}, "kv_heads is told of 0 layers"),
        ({"kv_heads": [2, 3, 4, 3]}, "4 query heads on 3 KV heads"),
        ({"kv_heads": [2, 0, 4, 1]}, "6 query heads on 0 KV heads"),
        ({"kv_heads": [2, "3", 4, 1]}, "geometry.kv_heads.1 = '3' should be a whole number"),
        ({"kind": "other"}, "geometry.kind.0 = 'other'"),
        ({"kv_headz": 2}, "unknown key 'geometry.kv_headz'"),
    ],
)
def test_a_geometry_that_does_not_fit_together_is_refused_by_its_field(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    facts = Plan.uniform(UNLIKE, "int8").describe()
    facts["geometry"] |= changed
    write_tensors(tmp_path / "my.plan", FORMAT, facts, {})
    with pytest.raises(PlanError, match=message):
        Plan.read(tmp_path / "my.plan")


def test_a_plan_has_recipes_for_the_heads_of_each_layer(tmp_path: Path) -> None:
    plan = Plan.uniform(UNLIKE, "int8")
    assert [len(row) for row in plan.recipes] == [2, 3, 4, 1]
    plan.save(tmp_path / "my.plan")
    assert Plan.read(tmp_path / "my.plan") == plan
    with pytest.raises(PlanError, match="4 layers of 2 heads, the model has 4 layers of 1 or 2 or 3 or 4 KV heads"):
        Plan(UNLIKE, (plan.recipes[0],) * 4)


def test_calibrations_have_room_for_the_most_heads_and_one_width() -> None:
    """Widths are those of the layers that attend to everything: a window's may be others."""
    shape = Geometry(
        (LayerGeometry(4, 2, 32, 32), LayerGeometry(8, 8, 16, 16, window=24), LayerGeometry(8, 4, 32, 32)), 4096
    )
    assert shape.by_head == (3, 8) and shape.size("d") == shape.size("e") == 32 and shape.size("g") == 2
    directions = torch.rand(3, 8, 32)
    plan = replace(Plan.uniform(shape, "q_filters(0.5)"), calibration={"q_filters.direction": directions})
    assert torch.equal(plan.calibrated("q_filters", 2, (0, 3))["direction"], directions[2, [0, 3]])
    with pytest.raises(PlanError, match=r"for this model it is \[3, 8, 32\]"):
        replace(plan, calibration={"q_filters.direction": directions[:, :4]})
    with pytest.raises(PlanError, match=r"q_filters.direction': d is \[32, 64\] in different layers"):
        replace(Plan.uniform(UNLIKE, ""), calibration={"q_filters.direction": torch.rand(4, 4, 32)})
    gates = {"duo.gates": torch.rand(4, 4)}
    assert replace(Plan.uniform(UNLIKE, "duo"), calibration=gates).calibration == gates


def test_figures_by_layer_are_gathered_with_room_for_the_most_heads() -> None:
    by_layer = [torch.full((heads, 2), float(heads)) for heads in UNLIKE.kv_heads]
    found = UNLIKE.gathered(dict(enumerate(by_layer)))
    assert found.shape == (4, 4, 2)
    assert torch.equal(found[..., 0] > 0, UNLIKE.there)
    assert torch.equal(found[UNLIKE.there], torch.cat(by_layer))
