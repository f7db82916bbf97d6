"""The judge on a trained model: the control, broken methods flagged, exact repetition, refusals with their names."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from headwise import registry
from headwise.assets import embedded_model
from headwise.attention.view import View
from headwise.bench.arms import Arm
from headwise.bench.cells.bench import Bench
from headwise.bench.cells.listed import arms_of
from headwise.bench.cells.pool import Processes
from headwise.bench.cells.worker import Setting
from headwise.bench.judging import judge
from headwise.bench.judging.compare import compared, load_result
from headwise.bench.protocol import HASHED
from headwise.errors import ContextError, HeadwiseError
from headwise.methods.evict import Evict
from headwise.registry import Card
from headwise.seams.transformers.cache import Cache, attach
from headwise.seams.transformers.drive import decode, prefill
from headwise.seams.transformers.load import load_model
from headwise.seams.transformers.replay import open_prompt, read_once
from tests.bench.conftest import quiet

TASK = "tests.bench.tiny_task:Recall"
CONTEXT = 700


def run(bench: Bench, **how: Any) -> dict[str, Any]:
    return bench.run(**{"executor": Processes(1), "folder": None, "watch": quiet, "name": "embedded"} | how)


@pytest.fixture(scope="module")
def setting() -> Setting:
    torch.set_num_threads(1)
    model = str(embedded_model())
    return Setting(model, attach(load_model(model)).fingerprint, "auto", "cpu", 2, 0)


def bench_of(setting: Setting, *sentences: str, share: float = 0.25, task: str = TASK) -> Bench:
    return Bench(setting, tuple(arms_of(sentences, [], [share])), (task,), (CONTEXT,))


@pytest.fixture(scope="module")
def result(setting: Setting) -> dict[str, Any]:
    return run(bench_of(setting, "keydiff", "quest", "int8", "a_shape"))


def test_every_table_carries_its_controls(result: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in result["rows"]}
    assert {"dense", "random @ 0.25", "streaming @ 0.25", "random @ int8", "streaming(1.0)"} <= set(rows)
    assert rows["dense"]["overall"]["mean"] > 0.5, "the judge needs a model that recalls"
    assert rows["dense"]["byte_steps_of_dense"] == 1 and rows["dense"]["output_tokens_of_dense"] == 1
    assert rows["streaming(1.0)"]["overall"] == rows["dense"]["overall"]
    for name in ("keydiff @ 0.25", "random @ 0.25", "streaming @ 0.25"):
        assert rows[name]["of_dense"] == pytest.approx(0.25, abs=0.04)
    assert rows["random @ int8"]["of_dense"] == pytest.approx(rows["int8"]["of_dense"], abs=0.03)
    assert not rows["int8"]["verdict"]["flagged"] and not rows["quest(0.25)"]["verdict"]["flagged"]
    assert list(rows["a_shape"]["verdict"]["against"]) == ["dense"]


def test_a_result_says_what_made_it(result: dict[str, Any]) -> None:
    protocol = result["protocol"]
    assert set(protocol["hashes"]) == set(HASHED)
    assert all(len(value) == 16 for value in protocol["hashes"].values())
    row = next(row for row in result["rows"] if row["name"] == "keydiff @ 0.25")
    task = row["tasks"][f"{TASK} {CONTEXT}"]
    assert task["count"] == 8 and task["kind"] == "Wilson 95 %" and task["low"] <= task["mean"] <= task["high"]
    assert row["overall"]["kind"] == "Wilson 95 %" and row["asks"] == 8
    assert len(row["lost_mass"]) == 8 and len(row["lost_mass"][0]) == 4


def test_two_runs_with_one_seed_agree_exactly(setting: Setting, result: dict[str, Any]) -> None:
    bench = bench_of(replace(setting, items=1), "random(40)")
    one, same = run(bench), run(bench)
    other = run(replace(bench, setting=replace(bench.setting, seed=1)))
    for found in (one, same, other):
        found.pop("timings")
    assert one == same
    assert one["protocol"]["hashes"]["data"] != other["protocol"]["hashes"]["data"]


@dataclass(frozen=True)
class Broken(Evict):
    """A defect on purpose: keeps what attention never looks at, the keys most alike to all others."""

    card = Card(title="broken", paper="none", frees_memory=True)
    part, name = "evict", "broken"
    needs = frozenset({"keys"})

    def score(self, view: View) -> torch.Tensor:
        keys = torch.nn.functional.normalize(view.keys.float(), dim=-1)
        return (keys * keys.mean(1, keepdim=True)).sum(-1) - 9.0 * (view.positions > 3)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(registry.METHODS["evict"]._things, "broken", Broken)
    yield


def test_a_broken_method_is_flagged(setting: Setting, broken: None) -> None:
    rows = run(bench_of(setting, "broken", "expected_attention(1.0)", share=0.5))["rows"]
    verdict = next(row["verdict"] for row in rows if row["recipe"] == "broken")
    assert verdict["flagged"] and "DOES NOT BEAT" in verdict["words"]


def test_a_control_that_differs_is_an_error(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwise.bench.cells.listed.CONTROL", "streaming(60)")
    with pytest.raises(HeadwiseError, match="A/A control failed"):
        run(bench_of(setting, "random"))


def test_over_length_items_raise(setting: Setting) -> None:
    with pytest.raises(ContextError, match=r"--context 7\d\d"):
        run(bench_of(setting, "random", task="tests.bench.tiny_task:Long"))


def test_compare_refuses_what_was_made_otherwise(result: dict[str, Any], tmp_path: Path) -> None:
    other = copy.deepcopy(result)
    same = compared(result, other)
    assert same["unlike"] == [] and len(same["rows"]) == len([row for row in result["rows"] if "tasks" in row])
    assert all(row["difference"]["mean"] == 0 for row in same["rows"])
    other["protocol"]["hashes"] |= {"stop": "x", "machine": "y"}
    with pytest.raises(HeadwiseError, match=r"stop .* and x; machine .*--allow stop --allow machine"):
        compared(result, other)
    with pytest.raises(HeadwiseError, match="machine"):
        compared(result, other, ["stop"])
    assert compared(result, other, ["stop", "machine"])["unlike"] == ["stop", "machine"]
    with pytest.raises(HeadwiseError, match="did you mean 'machine'"):
        compared(result, other, ["machin"])
    (tmp_path / "wrong.json").write_text(json.dumps({"rows": []}))
    with pytest.raises(HeadwiseError, match="'protocol' is missing"):
        load_result(tmp_path / "wrong.json")


@pytest.mark.parametrize("recipe", ["", "snapkv(100)", "h2o(90) | int8", "l2norm(0.3) | pyramid", "keydiff(80) | ada",
                                    "quest(0.2)", "expected_attention(120)", "a_shape(4, window=64)"])  # fmt: skip
def test_a_shared_reading_changes_nothing(loaded: tuple[Any, Any], recipe: str) -> None:
    model = loaded[0]
    ids = torch.randint(2, 500, (1, 400), generator=torch.Generator().manual_seed(3))
    own, shared = Cache(model, recipe), Cache(model, recipe)
    expected = prefill(model, own, ids, None)
    found = open_prompt(model, shared, ids, read_once(model, ids))
    assert torch.equal(found, expected)
    assert own.nbytes == shared.nbytes
    for layer in range(3):
        for head in range(2):
            positions = (cache.session.positions(layer, 0, head) for cache in (own, shared))
            assert torch.equal(*positions)
    wrote = partial(decode, model, max_new_tokens=20)
    assert torch.equal(wrote(own, logits=expected), wrote(shared, logits=found))


def test_verdicts_are_paired() -> None:
    def cells(*scores: float) -> judge.Cells:
        return {("t", 1): {"samples": [{"item": 0, "ask": i, "score": score} for i, score in enumerate(scores)]}}

    dense, mine = cells(1, 1, 1, 1), cells(1, 1, 1, 0)
    found = judge.verdict(mine, {"random": cells(0, 0, 0, 0), "streaming": cells(1, 0, 0, 0)}, dense, 0)
    assert not found["flagged"] and found["against"]["streaming"]["mean"] == 0.5
    tied = judge.verdict(mine, {"random": cells(0, 0, 0, 0), "streaming": mine}, dense, 0)
    assert tied["flagged"] and "streaming" in tied["words"] and "random" not in tied["words"]


def test_arms_of_recipes_with_and_without_budgets() -> None:
    listed = arms_of(["snapkv", "quest", "int8", "a_shape", "streaming(9)"], [Path("a.plan")], [0.1, 0.5])
    peers = {arm.label: arm.peer for arm in listed if arm.role == "plan"}
    assert peers == {
        "snapkv @ 0.1": "0.1", "snapkv @ 0.5": "0.5", "quest(0.1)": "0.1", "quest(0.5)": "0.5", "int8": "int8",
        "a_shape": "", "streaming(9)": "streaming(9)", "a": "a.plan",
    }  # fmt: skip
    assert sum(arm.role == "baseline" for arm in listed) == 2 * 5
    assert listed[0] == Arm("dense", "dense") and listed[-1].role == "control"


def test_a_budget_too_small_is_told_and_not_flagged(setting: Setting) -> None:
    rows = run(bench_of(setting, "expected_attention", share=0.1))["rows"]
    row = next(row for row in rows if row["recipe"] == "expected_attention")
    assert "takes at least" in row["refused"][f"{TASK} {CONTEXT}"]
    assert "verdict" not in row and "overall" not in row
