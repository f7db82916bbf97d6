"""`headwise layers` and `headwise train host`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Command


def test_parts_are_listed_and_shown(headwise: Command) -> None:
    listed = json.loads(headwise("layers", "--json").stdout)
    assert {one["slot"] for one in listed} == {"project", "position", "score", "normalise", "mix", "out"}
    shown = headwise("layers", "kda").stdout
    assert "274 (KDA / Kimi Linear)" in shown and "all channels fade alike: Gated DeltaNet" in shown
    assert "rank, rope=0" in headwise("layers", "mla").stdout


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
