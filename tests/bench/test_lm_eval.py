"""The harness's model "headwise": HFLM's numbers under the dense plan, other ones where something is evicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headwise.assets import embedded_model
from headwise.errors import HeadwiseError
from headwise.plan import Plan
from headwise.seams.transformers.cache import attach

pytest.importorskip("lm_eval", reason="until lm_eval is installed: pip install 'headwise[eval]'")

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from headwise.bench.lm_eval import HeadwiseLM

TASKS = Path(__file__).parents[1] / "data" / "lm_eval"
SETTINGS: dict[str, Any] = {"pretrained": str(embedded_model()), "dtype": "float32"}


def results(model: str, **more: Any) -> dict[str, Any]:
    """What the harness finds on both tasks of `TASKS`, every sample included."""
    return lm_eval.simple_evaluate(
        model=model, model_args=SETTINGS | more, tasks=["facts_choose", "facts_write"], bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False), device="cpu", batch_size=2,
    )  # fmt: skip


def likelihoods(found: dict[str, Any]) -> list[tuple[float, bool]]:
    samples = sorted(found["samples"]["facts_choose"], key=lambda sample: sample["doc_id"])
    return [choice for sample in samples for choice in sample["filtered_resps"]]


def written(found: dict[str, Any]) -> list[str]:
    samples = sorted(found["samples"]["facts_write"], key=lambda sample: sample["doc_id"])
    return [sample["resps"][0][0] for sample in samples]


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """The harness's own model."""
    return results("hf")


def test_dense_finds_what_the_harness_finds(plain: dict[str, Any]) -> None:
    dense = results("headwise")
    ours, theirs = likelihoods(dense), likelihoods(plain)
    assert [one for one, _ in ours] == pytest.approx([one for one, _ in theirs], abs=1e-3)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert {greedy for _, greedy in theirs} == {True, False}
    assert written(dense) == written(plain)
    assert dense["results"]["facts_choose"]["acc,none"] == plain["results"]["facts_choose"]["acc,none"] >= 0.5
    assert dense["config"]["headwise_recipes"] == ["dense"]


def test_an_eviction_finds_something_else(plain: dict[str, Any]) -> None:
    found = results("headwise", recipe="streaming(0.25)")
    gaps = [abs(one - other) for (one, _), (other, _) in zip(likelihoods(found), likelihoods(plain), strict=True)]
    assert max(gaps) > 1
    assert written(found) != written(plain)
    assert found["config"]["headwise_recipes"] == ["streaming(0.25)"]


@pytest.fixture(scope="module")
def pair() -> tuple[HFLM, HeadwiseLM]:
    """The harness's model and ours, which have room for 64 tokens."""
    return tuple(kind(**SETTINGS, device="cpu", max_length=64) for kind in (HFLM, HeadwiseLM))


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        ("loglikelihood", ("The river was wide. " * 30, " The boat was small and slow.")),  # the context is cut
        ("loglikelihood", ("", " Nothing came before.")),
        ("loglikelihood_rolling", ("The river was wide and the night was dark. " * 20,)),  # several windows
    ],
)
def test_edges_are_those_of_the_harness(pair: tuple[HFLM, HeadwiseLM], kind: str, texts: tuple[str, ...]) -> None:
    request = Instance(kind, {}, texts, 0)
    theirs, ours = (getattr(lm, kind)([request], disable_tqdm=True)[0] for lm in pair)
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_a_plan_file_is_followed(tmp_path: Path, pair: tuple[HFLM, HeadwiseLM]) -> None:
    seam = attach(pair[1].model)
    Plan.uniform(seam.geometry, "snapkv(0.5) | int8", seam.fingerprint).save(tmp_path / "a.plan")
    made = HeadwiseLM(**SETTINGS, device="cpu", plan=str(tmp_path / "a.plan"))
    assert made.get_model_info()["headwise_recipes"] == ["snapkv(0.5) | int8"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"plan": "a.plan", "recipe": "snapkv(0.2)"}, "leave one out"),
        ({"recipe": "snapkv(0.2"}, "as JSON"),
        ({"plan": "nosuch.plan"}, "nosuch.plan"),
        ({"peft": "x"}, "merge the adapter"),
        ({"parallelize": True}, "one device"),
    ],
)
def test_what_cannot_be_done_is_refused_before_loading(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(HeadwiseError, match=words):
        HeadwiseLM("no model", **settings)
