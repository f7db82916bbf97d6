"""Runs claims: host by host, every recipe of all claims together, and judges each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from headwise.claims import equal, judge
from headwise.claims.claim import CONTROLS, Claim
from headwise.claims.hosts import HOSTS
from headwise.claims.on_host import OnHost, Runs
from headwise.claims.proof import proof
from headwise.errors import HeadwiseError

LEAST_EQUAL = 0.05  # of the method's measured cost, that a control may lack


def run(claims: Sequence[Claim], runs: Runs, only: Sequence[str] = ()) -> dict[str, Any]:
    """Every claim with its state and what was measured on each of its hosts. only: hosts to run on, all by default."""
    names = [name for name in dict.fromkeys(name for one in claims for name in one.hosts) if not only or name in only]
    found: dict[str, dict[str, Any]] = {one.name: {} for one in claims}
    hosts = {}
    for name in names:
        stage = OnHost(HOSTS.get(name), runs)
        own = [one for one in claims if name in one.hosts]
        proofs = {asked: proof(stage, asked) for asked in dict.fromkeys(one.asked for one in own)}
        hosts[name] = stage.host.facts() | {"proofs": proofs}
        for one in own:
            if proofs[one.asked]["fails"]:
                found[one.name][name] = {"refused": proofs[one.asked]["fails"]}
        for one, result in results(stage, [one for one in own if name not in found[one.name]]):
            found[one.name][name] = result
    return {
        "hosts": hosts,
        "claims": [
            one.facts() | {"state": judge.state(one, found[one.name]), "results": found[one.name]} for one in claims
        ],
    }


def results(stage: OnHost, claims: Sequence[Claim]) -> Iterator[tuple[Claim, dict[str, Any]]]:
    """Each claim with what came of it on a host. Recipes are measured document by document, for all claims together."""
    arms = {one.name: _arms(stage, one) for one in claims}
    for asked in dict.fromkeys(one.asked for one in claims):
        able = [found for one in claims if one.asked == asked and isinstance(found := arms[one.name], dict)]
        if able:
            documents = range(stage.documents(asked))
            stage.measure_all(asked, [sentence for found in able for sentence in found.values()], documents)
    for one in claims:
        found = arms[one.name]
        yield one, {"refused": found} if isinstance(found, str) else _result(stage, one, found)


def _arms(stage: OnHost, claim: Claim) -> dict[str, str] | str:
    """By kind, the recipes with their numbers fitted on the first document; or why one of them cannot run."""

    def cost(sentence: str) -> float:
        return stage.cost(claim.equal, claim.asked, sentence)

    try:
        target, arms = cost(claim.method), {"method": claim.method}
        for kind in CONTROLS:
            given = claim.controls[kind]
            arms[kind] = equal.fitted(given, target, cost) if equal.is_open(given) else given
    except HeadwiseError as error:
        return str(error)
    return arms


def _result(stage: OnHost, claim: Claim, arms: dict[str, str]) -> dict[str, Any]:
    count = stage.documents(claim.asked)
    answers = {kind: _answers(stage, claim, sentence, count) for kind, sentence in arms.items()}
    method = answers.pop("method")
    for kind, control in answers.items():
        if control.cost < method.cost * (1 - LEAST_EQUAL):
            why = f"{control.cost:.4f} of dense attention's {claim.equal}, {claim.method} {method.cost:.4f}"
            return {"refused": f"the control '{control.sentence}' ({kind}) took {why}: give it {{share}} or more"}
    return {"dense": round(stage.dense(claim.asked, count), 4)} | judge.on_host(claim, method, answers)


def _answers(stage: OnHost, claim: Claim, sentence: str, count: int) -> judge.Answers:
    costs = [stage.measured(claim.asked, number, sentence).costs[claim.equal] for number in range(count)]
    return judge.Answers(sentence, stage.right(claim.asked, count, sentence), sum(costs) / count)
