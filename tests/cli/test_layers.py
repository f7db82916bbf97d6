"""`headwise layers`, `headwise train host` and `headwise compare-layers`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.bench.test_layers import SAID
from tests.cli.conftest import Command


def test_parts_are_listed_and_shown(headwise: Command) -> None:
    listed = json.loads(headwise("layers", "--json").stdout)
    assert {one["slot"] for one in listed} == {"project", "position", "pattern", "score", "normalise", "mix", "out"}
    shown = headwise("layers", "kda").stdout
    assert "274 (KDA / Kimi Linear)" in shown and "all channels fade alike: Gated DeltaNet" in shown
    assert "rank, rope=0" in headwise("layers", "mla").stdout
    assert "17 (Attention-aware SMoE)" in headwise("layers", "similar_experts").stdout
    assert "a weight of 0" in headwise("layers", "few_gates").stdout


def test_a_sentence_is_explained(headwise: Command) -> None:
    told = json.loads(headwise("layers", "gqa(2) | rope", "--width", "64", "--heads", "4", "--json").stdout)
    assert (told["project"], told["position"], told["normalise"], told["mix"]) == ("gqa", "rope", "softmax", "")
    assert told["1024 tokens"] == f"{1024 * (2 * 2 * 16 * 2 + 8):,} bytes of state"
    wrong = headwise("layers", "softmax | kda")
    assert wrong.exit_code == 2 and "leave one of the two out" in wrong.stderr


def test_a_host_is_trained_from_the_command_line(headwise: Command, tmp_path: Path) -> None:
    command = (
        "train", "host", "--layers", "delta, heads", "--depth", "2", "--width", "16", "--steps", "2", "--batch", "2",
        "--task", "induction(8, length=8)", "--out", str(tmp_path / "host"), "--json",
    )  # fmt: skip
    found = json.loads(headwise(*command).stdout)
    assert found["steps"] == 2 and 0 <= found["accuracy"] <= 1
    assert json.loads((tmp_path / "host" / "config.json").read_text())["layers"] == "delta, heads"
    wrong = headwise(*command[:6], "--depth", "3", *command[6:])
    assert wrong.exit_code == 2


def test_layers_are_compared_and_what_is_finished_is_kept(headwise: Command, tmp_path: Path) -> None:
    file, state = tmp_path / "layers.toml", str(tmp_path / "state")
    file.write_text(SAID)
    command = ("compare-layers", str(file), "--rows", "192", "--state", state, "--out", str(tmp_path / "found.json"))
    first = headwise(*command, "--picture", str(tmp_path / "found.png"))
    assert first.exit_code == 0 and "CoPE" in first.stdout and "seed 2" in first.stderr
    assert (tmp_path / "found.png").stat().st_size > 10_000
    again = headwise(*command, "--json")
    assert "12 finished taken over" in again.stderr
    found = json.loads(again.stdout)
    assert found == json.loads((tmp_path / "found.json").read_text())
    assert set(found["tasks"][0]["sides"]) == {"RoPE", "CoPE"}
    wrong = headwise("compare-layers", str(file), "--rows", "no_such")
    assert wrong.exit_code == 2 and "no side is or stands for 'no_such'" in wrong.stderr
