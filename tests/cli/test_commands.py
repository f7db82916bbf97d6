"""`headwise methods`, `doctor`, `explain`, `--version`, and the pages made of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import headwise as package
from headwise.assets import embedded_model
from headwise.cli.commands.doctor import TESTED
from headwise.geometry import Geometry
from headwise.plan import Plan
from headwise.registry import Card, all_methods
from tests.cli.conftest import Command

ROOT = Path(__file__).parents[2]
GEOMETRY = Geometry.uniform(4, 2, 16, 16, (None, None), 4096)


def test_version(headwise: Command) -> None:
    assert headwise("--version").stdout == f"headwise {package.__version__}\n"


def test_methods_lists_every_method(headwise: Command) -> None:
    listed = json.loads(headwise("methods", "--json").stdout)
    assert [one["name"] for one in listed] == list(all_methods())
    for one in listed:
        assert set(one) == {"name", "part", "knobs", "calibration", *Card.__dataclass_fields__}
        assert isinstance(one["systems"], list)
    snapkv = next(one for one in listed if one["name"] == "snapkv")
    assert snapkv["knobs"] == {"budget": 1.0, "sinks": 4, "recent": 32, "window": 32, "kernel": 5}
    assert snapkv["systems"] == [166]
    table = headwise("methods").stdout
    assert all(name in table for name in all_methods())


def test_explain_a_recipe(headwise: Command) -> None:
    told = headwise("explain", "snapkv(0.25)|int8 |quest(512)", "--context", "4096").stdout
    assert "snapkv(0.25) | int8 | quest(512)" in told
    assert "budget=0.25" in told
    assert told.count("forgets: ") == 3
    assert "4096 tokens" in told
    assert "%)" in told
    assert "dense attention, exactly" in headwise("explain", "dense").stdout


def test_explain_a_method_shows_its_card(headwise: Command) -> None:
    told = headwise("explain", "snapkv").stdout
    assert "arXiv 2404.14469" in told
    assert "window: last queries that vote" in told


def test_explain_counts_bytes_for_any_model(headwise: Command, tiny: Path) -> None:
    told = headwise("explain", "streaming(128)", tiny, "--context", "1000").stdout
    assert "3 layers of 2 KV heads, float32" in told
    # 128 tokens, 3 layers, 2 heads: key and value of 16 float32, and a position
    assert f"{128 * 6 * (2 * 16 * 4 + 4) / 1024:.1f} KiB" in told


def test_explain_says_how_many_tokens_bytes_are(headwise: Command, tiny: Path) -> None:
    told = headwise("explain", "streaming('100KiB')", tiny, "--context", "1000").stdout
    tokens = 100 * 1024 // (6 * 16 * (2 * 16 * 4 + 4)) * 16
    assert f"'streaming(100KiB)' keeps {tokens} tokens per KV head" in told
    assert f"{tokens * 6 * (2 * 16 * 4 + 4) / 1024:.1f} KiB" in told


def test_explain_a_plan(headwise: Command, tmp_path: Path) -> None:
    plan = Plan.uniform(GEOMETRY, "snapkv(64)", "feedfacefeedface").protecting((3, 9))
    plan.save(tmp_path / "a.plan")
    told = headwise("explain", tmp_path / "a.plan", "--context", "2048").stdout
    for said in (plan.digest, "feedfacefeedface", "0.0, 0.1, 1.0, 1.1", "snapkv(64)", "protected tokens: 3 to 8"):
        assert said in told


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (["explain", "nosuch.plan"], ("nosuch.plan", "check the path")),
        (["explain", "snapkv(2.5)"], ("2.5", "at most 1.0")),
        (["explain", "snapkv(0.5)", "--context", "999999"], ("999999", "positions")),
    ],
)
def test_explain_refuses(headwise: Command, what: list[str], words: tuple[str, ...]) -> None:
    result = headwise(*what)
    assert result.exit_code == 2
    assert all(word in result.stderr for word in words)


def test_doctor(headwise: Command) -> None:
    found = json.loads(headwise("doctor", "--json").stdout)
    assert found["supported"]["torch"].startswith("supported")
    assert {one["name"] for one in found["backends"]} >= {"sdpa", "reference"}
    assert all(one["why"] for one in found["backends"])
    assert found["embedded_model"]["passes"] or not found["embedded_model"]["there"]
    told = headwise("doctor")
    assert told.exit_code == 0
    assert told.stdout.count("backend ") == len(found["backends"])


def test_doctor_of_a_model(headwise: Command) -> None:
    found = json.loads(headwise("doctor", str(embedded_model()), "--json").stdout)
    assert found["governed"] == found["layers"] and found["state_bytes"] == 0 and found["governed_share"] == 1
    assert "a plan governs" in headwise("doctor", str(embedded_model())).stdout


def test_doctor_says_what_the_package_asks_for() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    for name in ("torch", "transformers"):
        assert f'"{name}>={TESTED[name][0]}"' in project
    assert f'requires-python = ">={TESTED["python"][0]}"' in project
    assert TESTED["transformers"][0] in (ROOT / "Makefile").read_text()
