"""Claims run on a small host: what works holds, and a method that does nothing fails every claim it is put into."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch

from headwise.attention.view import View
from headwise.claims import equal, on_host
from headwise.claims.claim import CLAIMS, Claim, filled
from headwise.claims.hosts import HOSTS
from headwise.claims.on_host import OnHost, Runs
from headwise.claims.run import results, run
from headwise.errors import HeadwiseError
from headwise.forms import Where
from headwise.knobs import NonNegative
from headwise.methods.evict.random import Random
from headwise.methods.prefill.bigbird import BigBird
from headwise.methods.select.random_read import RandomRead
from headwise.recipe import Recipe
from headwise.registry import METHODS, register

HOST = "lookup_late"
WORKS = Claim(
    row=166,
    says="the tokens that look least like others are enough",
    method="exact_topk(0.1)",
    hosts=(HOST,),
    equal="tokens read",
    asked="after",
    controls={
        "random": "random_read({share})",
        "sinks and recent": "recent_read({share})",
        "simpler": "recent_read({share}, sinks=16)",
        "idea off": "random_read({share}, sinks=0)",
    },
    keeps=0.9,
    tried=("exact_topk(0.01)", "exact_topk(0.3)"),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("claims"), lambda what, done, total: None)


@pytest.fixture
def doing_nothing() -> Iterator[dict[str, str]]:
    """By part, a recipe with a method that looks like one of its part and chooses by lot; first layers are left whole
    where that costs nothing on hosts with planted heads."""

    @register("evict", "no_op_evict")
    @dataclass(frozen=True)
    class NoOpEvict(Random):
        skip_layers: NonNegative = 2

        def score(self, view: View) -> torch.Tensor:
            return super().score(replace(view, seed=view.seed + 1))

    @register("select", "no_op_select")
    @dataclass(frozen=True)
    class NoOpSelect(RandomRead):
        skip_layers: NonNegative = 2

        def select(self, view: View) -> Where:
            return super().select(replace(view, seed=view.seed + 1))

    @register("prefill", "no_op_prefill")
    @dataclass(frozen=True)
    class NoOpPrefill(BigBird):
        def where(self, view: View) -> Where:
            return super().where(replace(view, seed=view.seed + 1))

    yield {
        "evict": "no_op_evict({share})",
        "select": "no_op_select({share})",
        "prefill": "no_op_prefill(1, local=1, drawn={count})",
        "compress": "no_op_evict({share})",
    }
    for part in ("evict", "select", "prefill"):
        METHODS[part]._things.pop(f"no_op_{part}")


def test_claims_on_a_small_host(runs: Runs, doing_nothing: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One test for all, as the host takes a minute to train."""
    result = run([WORKS], runs)
    found = result["claims"][0]["results"][HOST]
    assert result["claims"][0]["state"] == "shown", found
    assert found["asks"] >= 128 and found["dense"] >= 0.9
    for control in found["controls"].values():
        assert abs(control["cost"] - found["cost"]) < 0.01
    low, high = found["tried"]  # nothing was judged by the former
    assert low["cost"] < found["cost"] < high["cost"] and low["share"] < found["share"] <= high["share"]
    json.dumps(result)

    # what is kept is not measured again
    with monkeypatch.context() as patch:
        patch.setattr(on_host, "Examiner", None)
        assert run([WORKS], runs) == result

    stage = OnHost(HOSTS.get(HOST), runs)
    planted = [made for one in CLAIMS.all().values() if (made := _planted(stage, one, doing_nothing)) is not None]
    judged = {one.name: found for one, found in results(stage, planted)}
    print({name: found.get("beaten", found) for name, found in judged.items()})
    assert not [name for name, found in judged.items() if found.get("holds")], "a method that does nothing passes these"
    assert sum("refused" not in found for found in judged.values()) >= 10, "others need a calibration of this host"


def _planted(stage: OnHost, one: Claim, doing_nothing: dict[str, str]) -> Claim | None:
    """The claim, here, of a method that does nothing, at the cost of the claim's own; None where it cannot run here."""
    parts = {part.part for part in Recipe.parse(filled(one.method)).parts}  # type: ignore[attr-defined]
    kind = {"pairs": "prefill", "tokens read": "select", "bytes held": "evict"}[one.equal]
    assert kind in parts or one.equal == "bytes held", f"{one.name}: {one.equal} are saved by no part of it"
    try:
        cost = stage.cost(one.equal, one.asked, one.method) if one.at is None else one.at
        method = equal.fitted(doing_nothing[kind], cost, lambda sentence: stage.cost(one.equal, one.asked, sentence))
    except HeadwiseError as error:  # the claim needs what this host lacks, a calibration say
        print(f"{one.name} cannot run on {HOST}: {error}")
        return None
    return replace(one, method=method, at=None, hosts=(HOST,), keeps=0.0, tried=())
