"""Layers compared in one small host."""

from __future__ import annotations

from pathlib import Path

import pytest

from headwise.bench.layers import Comparison, Side, Trained, compared, systems_of
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
lrs = [1e-3, 1e-2]
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
    assert len(kept) == 12 and len(finished) == 24
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
    assert cells[0].key != cells[1].key != cells[4].key and cells[0].side == cells[1].side == cells[4].side


def test_a_side_may_have_feed_forward_layers_of_its_own_width(tmp_path: Path) -> None:
    said = load(tmp_path, SAID.replace('CoPE = "cope"', 'CoPE = { layers = "cope", inner = 21 }'))
    assert [cell.config().intermediate_size for cell in said.cells() if cell.lr == 1e-3][:2] == [16, 21]


def test_rows_choose_sides_by_name_or_number(tmp_path: Path) -> None:
    more = SAID.replace('CoPE = "cope"', 'CoPE = "cope"\nBAM = "bam | ssmax"').replace('"CoPE"]', '"CoPE", "BAM"]')
    said = load(tmp_path, more)
    assert said.only(["192"]).tasks[0].sides == ["RoPE", "CoPE"]
    assert said.only(["BAM", "RoPE"]).tasks[0].sides == ["RoPE", "BAM"]
    assert systems_of("bam | ssmax") == [184] and systems_of("2*local(4), heads") == [253]
    assert systems_of(Side(layers="rope", feed="similar_experts", hooks="balance")) == [17]
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
        ("lrs = [1e-3, 1e-2]", "lrs = [1e-3, 1e-3]", "give 1 to 8 different learning rates"),
        ('CoPE = "cope"', 'CoPE = { layers = "cope", hooks = "few_gate" }', "did you mean 'few_gates'"),
        ('CoPE = "cope"', 'CoPE = { layers = "cope", feed = "expert" }', "did you mean 'experts'"),
        ("width = 8", "wide = 8", "'host.width' is missing"),
    ],
)
def test_a_file_that_means_nothing_is_refused_before_work_starts(tmp_path: Path, old: str, new: str, told: str) -> None:
    with pytest.raises(HeadwiseError, match=told):
        load(tmp_path, SAID.replace(old, new))


def test_a_side_is_asked_with_the_rate_of_its_least_validation_loss(tmp_path: Path) -> None:
    said = load(tmp_path)
    right = {"8": 0.5, "16": 0.5}
    base = {"accuracy": right, "read": 1.0, "seconds": 0.0, "parameters": 1, "state_bytes": 1, "loss": 1.0}

    def made(cell: Trained) -> dict:
        better = (cell.lr == 1e-2) == (cell.name == "CoPE")
        return base | {"validation": 0.1 if better else 0.2, "accuracy": {"8": float(better), "16": float(better)}}

    cells = {cell.key: cell for cell in said.cells()}
    found = compared(said, lambda key, make: made(cells[key]), lambda *told: None, lambda *told: None)
    sides = found["tasks"][0]["sides"]
    assert sides["CoPE"]["lr"] == 1e-2 and sides["RoPE"]["lr"] == 1e-3
    assert sides["CoPE"]["rates"] == {"0.001": 0.2, "0.01": 0.1}
    assert sides["CoPE"]["accuracy"]["16"]["mean"] == sides["RoPE"]["accuracy"]["16"]["mean"] == 1.0


def test_a_side_may_have_marks_hooks_experts_and_sizes_of_its_own(tmp_path: Path) -> None:
    other = (
        '{ layers = "here_or_all(4), local(4), landmark(3)", depth = 3, heads = 4, marks = 3, '
        'feed = "experts(2)", hooks = "few_gates(0.1) | balance" }'
    )
    cell = load(tmp_path, SAID.replace('CoPE = "cope"', f"CoPE = {other}")).cells()[2]
    assert cell.name == "CoPE" and cell.sequences(16)(0)[0].tolist().count(5) == 16 // 3
    config = cell.config()
    assert (config.vocab_size, config.num_hidden_layers, config.num_attention_heads) == (6, 3, 4)
    found = cell.run(lambda *told: None)
    assert 0 < found["read"] < 1
