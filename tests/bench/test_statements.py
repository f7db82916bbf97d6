"""Statements of papers in the file of a comparison: refused where they could not fail, and judged by their limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headwise.bench.layers import Comparison, main
from headwise.bench.statements import judged
from headwise.errors import HeadwiseError
from headwise.report.layers_table import table

SAID = """
seeds = [0, 1, 2]
baselines = ["RoPE"]
[host]
width = 8
heads = 2
depth = 1
batch = 2
lrs = [1e-3]
held = 4
[sides]
RoPE = "rope"
CoPE = "cope"
[[tasks]]
task = "flip_flop(length=8)"
lengths = [8, 16]
steps = 2
sides = ["RoPE", "CoPE"]
[[statements]]
row = 192
says = "It is better"
parts = [
    { says = "right", side = "CoPE", above = 0.5 },
    { says = "right minus RoPE", side = "CoPE", control = "RoPE", above = 0.0 },
]
"""


def load(tmp_path: Path, text: str = SAID) -> Comparison:
    path = tmp_path / "layers.toml"
    path.write_text(text)
    return Comparison.load(path)


def result(cope: list[float], rope: list[float]) -> dict[str, Any]:
    """Of three seeds, what sides get right at 16 tokens; all of it at 8, and a loss that is as much."""
    sides = {
        name: {
            "seeds": [{"8": 1.0, "16": one} for one in own], "parameters": 10 * len(name),
            "by_seed": {"loss": own, "read": own},
        }
        for name, own in (("CoPE", cope), ("RoPE", rope))
    }  # fmt: skip
    told = {"host": {"depth": 1, "width": 8, "heads": 2}, "seeds": [0, 1, 2], "command": "some", "date": "2026-11-30"}
    tasks = [{"task": "flip_flop(length=8)", "lengths": [8, 16], "sides": sides}]
    return told | {"machine": {"processor": "any", "cores": 2}, "tasks": tasks}


@pytest.mark.parametrize(
    ("cope", "rope", "state"),
    [
        ([0.9, 0.91, 0.92], [0.3, 0.32, 0.31], "shown"),
        ([0.4, 0.41, 0.42], [0.3, 0.32, 0.31], "negative"),  # better, and not good enough
        ([0.9, 0.91, 0.92], [0.91, 0.9, 0.92], "open"),
        ([0.9, 0.91, 0.92], [0.99, 1.0, 1.0], "negative"),
    ],
)
def test_a_statement_holds_where_all_intervals_clear_their_limits(
    tmp_path: Path, cope: list[float], rope: list[float], state: str
) -> None:
    (found,) = judged(load(tmp_path).statements, result(cope, rope))
    assert found.state == state and found.parts[1].control == "RoPE" and found.parts[0].found.count == 3
    assert abs(found.parts[1].found.mean - (sum(cope) - sum(rope)) / 3) < 1e-6


@pytest.mark.parametrize(
    ("part", "mean"),
    [
        ('at = 16, since = 8, control = "RoPE", above = 0.0', 0.6),  # (0.9 - 1) - (0.3 - 1)
        ("at = 16, since = 8, above = -0.2", -0.1),
        ('of = "loss", control = "RoPE", below = 0.0', 0.6),
        ('of = "parameters", reference = "RoPE", below = 1.0', 0.0),
    ],
)
def test_what_a_part_is_measured_by(tmp_path: Path, part: str, mean: float) -> None:
    text = SAID.replace("above = 0.5", part.replace("0.0 }", "0.0"))
    (found,) = judged(load(tmp_path, text).statements, result([0.9] * 3, [0.3] * 3))
    assert abs(found.parts[0].found.mean - mean) < 1e-6
    assert found.parts[0].control == ("RoPE" if "control" in part else "")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (', control = "RoPE"', "", "so that it cannot fail; give a part control="),
        (', control = "RoPE"', ', control = "RoPE", reference = "RoPE"', "a control and a reference"),
        ("above = 0.5", "above = 0.5, below = 1.0", "no limit, or two"),
        ("above = 0.5", "above = 0.5, task = 1", "task=1 of 1"),
        ("above = 0.5", "above = 0.5, at = 32", "asked at 32 tokens; task 0 asks at 8, 16"),
        ('control = "RoPE"', 'control = "Rope"', "'Rope', which stands not in task 0"),
        ("row = 192", 'row = "192"', "should be a whole number"),
    ],
)
def test_a_statement_that_cannot_be_judged_is_refused(tmp_path: Path, old: str, new: str, told: str) -> None:
    with pytest.raises(HeadwiseError, match=told):
        load(tmp_path, SAID.replace(old, new))


def test_statements_are_judged_on_a_result_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(tmp_path)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result([0.9] * 3, [0.3] * 3)))
    main([str(tmp_path / "layers.toml"), str(path)])
    assert capsys.readouterr().out == "row 192, shown: It is better\n"
    assert json.loads(path.read_text())["findings"][0]["row"] == 192


def test_sides_that_were_not_trained_are_not_judged(tmp_path: Path) -> None:
    found = result([0.9] * 3, [0.3] * 3)
    del found["tasks"][0]["sides"]["CoPE"]
    assert judged(load(tmp_path).statements, found) == []


def test_a_table_tells_statements_with_what_was_measured() -> None:
    part = {"says": "right minus RoPE", "found": {"mean": 0.5, "low": 0.4, "high": 0.6, "count": 3}, "above": 0.0}
    finding = {"row": 192, "says": "It is better", "host": "h", "command": "c", "machine": "m", "date": "d"}
    told = table(
        {
            "machine": {"processor": "any", "cores": 2}, "command": "some", "seeds": [0], "tasks": [],
            "host": {"depth": 1, "width": 8, "heads": 2, "batch": 1, "held": 1},
            "findings": [finding | {"parts": [part | {"control": "RoPE"}]}],
        }
    )  # fmt: skip
    assert told.endswith("| 192 | It is better | right minus RoPE: 0.5 (0.4 to 0.6), above 0 | shown |")
