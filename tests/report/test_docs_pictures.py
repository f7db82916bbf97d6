"""The pictures of the docs are of the data that lies beside them, and the data is of a kind that today's code makes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from headwise.assets import embedded_plan
from headwise.cli.main import app
from headwise.report.fronts import points
from headwise.report.pictures import SOURCE, overview
from headwise.tasks.taskbook import DEFAULT_TASKS

DOCS = Path(__file__).parents[2] / "docs"


def load(name: str) -> dict:
    return json.loads((DOCS / "data" / f"{name}.json").read_text())


def fields(value: object, path: str = "") -> Iterator[str]:
    """Every key of an object, with those above it; rows of a list count as one, keys that are data do not."""
    if isinstance(value, dict):
        for key, one in value.items():
            data = path.endswith((".recipes", ".backends", ".remarks", ".moved_per_token"))
            yield from [] if data else [f"{path}.{key}", *fields(one, f"{path}.{key}")]
    elif isinstance(value, list):
        for one in value:
            yield from fields(one, f"{path}[]")


@pytest.mark.parametrize("name", ["picture", "keep_less"])
def test_a_picture_is_of_the_data_beside_it(name: str) -> None:
    data = (DOCS / "data" / f"{name}.json").read_bytes()
    with Image.open(DOCS / f"{name}.png") as picture:
        assert picture.info.get(SOURCE) == hashlib.sha256(data).hexdigest(), "draw it again, see the Makefile"


def test_the_run_that_is_shown_is_of_todays_kind() -> None:
    small = ["--context", "1024", "--facts", "2"]
    found = CliRunner().invoke(app, ["run", "--json", *small, "--plan", str(embedded_plan(0.25))])
    assert found.exit_code == 0, found.output
    fresh, shown = json.loads(found.stdout), load("picture")
    assert set(fields(shown)) == set(fields(fresh))
    assert [row["role"] for row in shown["rows"]] == [row["role"] for row in fresh["rows"]]
    names = [[row["recipe"].partition("(")[0] for row in one["rows"]] for one in (shown, fresh)]
    assert names[0] == names[1]
    for key in ("model_fingerprint", "geometry", "dtype", "template"):
        assert shown[key] == fresh[key], key
    assert shown["rows"][1]["recipes"] == fresh["rows"][1]["recipes"], "the plan is another one"
    drawn = [text.get_text() for axes in overview(shown).axes for text in axes.texts]
    assert " 10 of 10" in drawn


def test_the_comparison_that_is_shown_is_of_todays_kind() -> None:
    row = {"name": "a @ 0.25", "role": "plan", "recipe": "a", "share": 0.25, "of_dense": 0.2, "overall": {"mean": 0.5}}
    fresh, shown = points({"rows": [row]}), load("keep_less")
    assert set(fields(shown)) == set(fields(fresh)) and shown["units"] == fresh["units"]
    assert len(DEFAULT_TASKS) == 6, "docs/keep_less.md says six tasks"
    assert {"dense", "random @ 0.25", "streaming @ 0.25", "plan-25"} <= {one["name"] for one in shown["rows"]}
    assert all(0 <= one["score"] <= 1 and 0 < one["of_dense"] <= 1 for one in shown["rows"])
