"""Layers compared in one small host."""

from __future__ import annotations

from pathlib import Path

import pytest

from headwise.bench.layers import Comparison, compared, systems_of
from headwise.errors import HeadwiseError
from headwise.report.layers_table import picture, table

SAID = """
seeds = [0, 1, 2]
baselines = ["RoPE"]
[host]
width = 8
heads = 2
depth = 1
batch = 2
lr = 1e-3
held = 4
[sides]
RoPE = "rope"
CoPE = "cope"
[[tasks]]
task = "flip_flop(length=8)"
lengths = [8, 16]
steps = 2
sides = ["RoPE", "CoPE"]
"""


def load(tmp_path: Path, text: str = SAID) -> Comparison:
    path = tmp_path / "layers.toml"
    path.write_text(text)
    return Comparison.load(path)


def test_every_side_is_trained_once_a_seed_and_what_is_kept_is_not_made_again(tmp_path: Path) -> None:
    kept: dict[str, dict] = {}
    finished: list[str] = []

    def once(key, make):  # type: ignore[no-untyped-def]
        return kept.setdefault(key, None) or kept.__setitem__(key, make()) or kept[key]

    said = load(tmp_path)
    for _ in range(2):
        found = compared(said, once, lambda *told: None, lambda cell, result: finished.append(cell.label))
    assert len(kept) == 6 and len(finished) == 12
    side = found["tasks"][0]["sides"]["CoPE"]
    assert side["systems"] == [192] and set(side["accuracy"]) == {"8", "16"} and len(side["seeds"]) == 3
    apart = [cope["16"] - rope["16"] for cope, rope in zip(side["seeds"], _seeds(found, "RoPE"), strict=True)]
    assert abs(side["against"]["RoPE"]["mean"] - sum(apart) / 3) < 1e-5
    assert side["against"]["RoPE"]["state"] in ("above", "below", "open")
    told = table({"machine": {"processor": "any", "cores": 2}, "command": "some", **found})
    assert "| CoPE | `cope` | 192 |" in told and told.count("\n| ") == 4
    assert len(picture(found).axes) == 1


def _seeds(found: dict, side: str) -> list[dict[str, float]]:
    seeds: list[dict[str, float]] = found["tasks"][0]["sides"][side]["seeds"]
    return seeds


def test_a_seed_decides_what_a_side_comes_to(tmp_path: Path) -> None:
    cells = load(tmp_path).cells()
    assert cells[0].run(lambda *told: None)["loss"] == cells[0].run(lambda *told: None)["loss"]
    assert cells[0].key != cells[2].key and cells[0].side == cells[2].side


def test_rows_choose_sides_by_name_or_number(tmp_path: Path) -> None:
    more = SAID.replace('CoPE = "cope"', 'CoPE = "cope"\nBAM = "bam | ssmax"').replace('"CoPE"]', '"CoPE", "BAM"]')
    said = load(tmp_path, more)
    assert said.only(["192"]).tasks[0].sides == ["RoPE", "CoPE"]
    assert said.only(["BAM", "RoPE"]).tasks[0].sides == ["RoPE", "BAM"]
    assert systems_of("bam | ssmax") == [184]
    with pytest.raises(HeadwiseError, match="no side is or stands for '999'"):
        said.only(["999"])


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("seeds = [0, 1, 2]", "seeds = [0]", "1 seeds; give 3 to 20"),
        ('CoPE = "cope"', 'CoPE = "coop"', "did you mean 'cope'"),
        ('sides = ["RoPE", "CoPE"]', 'sides = ["RoPE"]', "the side 'CoPE' stands in no task"),
        ('sides = ["RoPE", "CoPE"]', 'sides = ["RoPE", "Cope"]', "no side is called 'Cope'"),
        ("lengths = [8, 16]", "lengths = [8, 17]", "give an even length"),
        ("width = 8", "wide = 8", "'host.width' is missing"),
    ],
)
def test_a_file_that_means_nothing_is_refused_before_work_starts(tmp_path: Path, old: str, new: str, told: str) -> None:
    with pytest.raises(HeadwiseError, match=told):
        load(tmp_path, SAID.replace(old, new))
