"""What rows are given beside a prompt: a calibration of the model, and where the examples of a document stand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from headwise.assets import embedded_calibration, embedded_model
from headwise.bench.arms import Arm
from headwise.bench.cells.worker import Cell, Setting, Worker, encoded
from headwise.bench.frame import Frame
from headwise.bench.job import encode
from headwise.calibrate.calibration import Calibration
from headwise.cli.given import made_bench
from headwise.errors import PlanError, RecipeError
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import attach
from headwise.tasks.taskbook import build_task

Loaded = tuple[Any, Any]
TELLING = ("duo.gates", "moa.spans", "nats.head", "q_filters.direction", "razor.echo", "razor.induction")


@pytest.fixture
def calibration() -> Calibration:
    return Calibration.load(embedded_calibration())


@pytest.fixture
def setting(embedded: Loaded) -> Setting:
    return Setting(str(embedded_model()), attach(embedded[0]).fingerprint, "auto", "cpu", 1, 0)


@pytest.fixture
def embedded() -> Loaded:
    from headwise.seams.transformers.load import load_model, load_tokenizer

    torch.set_num_threads(1)
    return load_model(str(embedded_model())), load_tokenizer(str(embedded_model()))


def test_the_shipped_calibration_is_of_the_embedded_model_and_small(embedded: Loaded, calibration: Calibration) -> None:
    assert calibration.model == attach(embedded[0]).fingerprint
    assert set(TELLING) <= set(calibration.tensors)
    assert embedded_calibration().stat().st_size < 200_000


def test_methods_that_tell_heads_apart_are_shown_it(embedded: Loaded, calibration: Calibration) -> None:
    frame = Frame(attach(embedded[0]), 1500, torch.bfloat16, calibration)
    assert not frame.plan(Recipe.parse("snapkv(0.5)")).calibration, "which looks at no calibration"
    for sentence in ("razor(0.2)", "q_filters(0.5) | int8"):
        assert set(TELLING) <= set(frame.plan(Recipe.parse(sentence)).calibration)
    blind = replace(frame, calibration=None)
    fitted, loose = (one.fitted("razor", frame.dense_bytes // 2) for one in (frame, blind))
    plan = frame.plan(fitted)
    whole = sum(recipe.evict is None for layer in range(8) for recipe, heads in plan.groups(layer) for _ in heads)
    assert 0 < whole < 16
    assert 0.45 * frame.dense_bytes < frame.bytes_of(plan) <= 0.5 * frame.dense_bytes
    assert fitted.evict.amount.tokens < loose.evict.amount.tokens, "heads that copy keep everything, the others less"
    with pytest.raises(RecipeError, match="takes at least"):
        frame.fitted("razor", frame.dense_bytes // 20)


def test_a_comparison_of_the_embedded_model_takes_its_own(setting: Setting) -> None:
    how: dict[str, Any] = {
        "recipes": ["razor"], "plans": [], "tasks": [], "budgets": [0.5], "contexts": [500], "items": 1, "seed": 0,
        "dtype": "auto", "device": "cpu",
    }  # fmt: skip
    ours = made_bench(None, **how, calibration=None).setting
    assert ours.calibration == str(embedded_calibration()) and len(ours.calibrated) == 16
    assert made_bench(str(embedded_model()), **how, calibration=None).setting == setting
    cell = Cell("kv_recall", 500, Arm("plan", "razor", share=0.5))
    assert cell.key(ours) != cell.key(setting)
    assert cell.key(ours) == cell.key(replace(ours, calibration="elsewhere/heads.calibration"))


def test_a_calibration_of_another_model_is_refused(calibration: Calibration, tmp_path: Path) -> None:
    replace(calibration, model="0123456789abcdef").save(tmp_path / "other")
    with pytest.raises(PlanError, match=r"measured on model 0123456789abcdef.*run `headwise calibrate`"):
        made_bench(
            None, recipes=["razor"], plans=[], tasks=[], budgets=[0.5], contexts=[500], items=1, seed=0, dtype="auto",
            device="cpu", calibration=tmp_path / "other",
        )  # fmt: skip


@pytest.mark.parametrize("task", ["kv_recall", "kv_latest", "few_shot_arithmetic", "few_shot_code"])
def test_examples_are_marked_token_by_token(embedded: Loaded, task: str) -> None:
    tokenizer = embedded[1]
    (item,) = build_task(task).items(lambda text: encode(tokenizer, text).shape[1], 700, 1, 0)
    prompt = encoded(tokenizer, task, item, 700)
    assert len(prompt.marks) == len(item.examples) > 3
    for mark, (first, last) in zip(prompt.marks, item.examples, strict=True):
        assert tokenizer.decode(prompt.ids[0, mark.start : mark.end]) == item.document[first:last]
    assert [mark.end for mark in prompt.marks] == sorted(mark.end for mark in prompt.marks)


def test_rows_see_the_marks(embedded: Loaded, setting: Setting) -> None:
    """An example that is not kept as a whole goes as a whole: fewer tokens stay than planned, where there are marks."""
    worker = Worker(*embedded, setting)
    for task, whole in (("kv_recall", True), ("niah_multiquery", False)):
        (document,) = worker.run(Cell(task, 700, Arm("plan", "shot_kv(0.4)")))["documents"]
        kept = {count for row in document["kept"] for count in row}
        planned = round(0.4 * document["tokens"])
        assert (min(kept) < planned) == whole and max(kept) <= planned
