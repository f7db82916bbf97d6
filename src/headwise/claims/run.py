"""Runs claims: host by host, every recipe of all claims together, and judges each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from headwise.claims import equal, judge
from headwise.claims.claim import CONTROLS, Claim, is_open
from headwise.claims.hosts import HOSTS
from headwise.claims.on_host import OnHost, Runs
from headwise.claims.proof import proof
from headwise.errors import HeadwiseError

LEAST_EQUAL = 0.05  # of the method's measured cost, that a control may lack
REFITS = 3


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
    arms = {}
    for place, one in enumerate(claims):
        stage.runs.watch(f"{stage.host.name}: controls that cost what {one.method} costs", place, len(claims))
        arms[one.name] = _arms(stage, one)
    for asked in dict.fromkeys(one.asked for one in claims):
        able = [found for one in claims if one.asked == asked and isinstance(found := arms[one.name], dict)]
        if able:
            documents = range(stage.documents(asked))
            stage.measure_all(asked, [sentence for found in able for sentence in found.values()], documents)
            stage.measure_all(
                asked, [sentence for one in claims if one.asked == asked for sentence in one.tried], documents
            )
    for one in claims:
        found = arms[one.name]
        yield one, {"refused": found} if isinstance(found, str) else _result(stage, one, found)


def _arms(stage: OnHost, claim: Claim) -> dict[str, str] | str:
    """By kind, the recipes with their numbers fitted on the first document; or why one of them cannot run."""
    try:
        cost = _cost(stage, claim)
        method = claim.method if claim.at is None else equal.fitted(claim.method, claim.at, cost)
        target = cost(method)
        return {"method": method} | {kind: _fitted(stage, claim, kind, target) for kind in CONTROLS}
    except HeadwiseError as error:
        return str(error)


def _cost(stage: OnHost, claim: Claim) -> Callable[[str], float]:
    return lambda sentence: stage.cost(claim.equal, claim.asked, sentence)


def _fitted(stage: OnHost, claim: Claim, kind: str, target: float) -> str:
    """A control with its open number, if it has one, such that it costs `target` on the first document."""
    given = claim.controls[kind]
    return equal.fitted(given, target, _cost(stage, claim)) if is_open(given) else given


def _result(stage: OnHost, claim: Claim, arms: dict[str, str]) -> dict[str, Any]:
    count = stage.documents(claim.asked)
    method = _answers(stage, claim, arms["method"], count)
    controls = {}
    for kind in CONTROLS:
        try:
            controls[kind] = _equal(stage, claim, kind, arms[kind], method.cost, count)
        except HeadwiseError as error:
            return {"refused": f"{method.sentence} took {method.cost:.4f} of dense attention's {claim.equal}: {error}"}
    tried = [judge.cost_and_share(_answers(stage, claim, sentence, count)) for sentence in claim.tried]
    dense = {"dense": round(stage.dense(claim.asked, count), 4)}
    return dense | judge.on_host(claim, method, controls) | ({"tried": tried} if tried else {})


def _equal(stage: OnHost, claim: Claim, kind: str, sentence: str, target: float, count: int) -> judge.Answers:
    """What a control answers at no less than `target` over all documents: where it was fitted too low on the first, it
    is fitted again, to as much more there. HeadwiseError where it cannot cost as much."""
    control, first = _answers(stage, claim, sentence, count), _cost(stage, claim)
    for _ in range(REFITS if is_open(claim.controls[kind]) else 0):
        if control.cost >= target * (1 - LEAST_EQUAL):
            break
        again = _fitted(stage, claim, kind, first(control.sentence) * target / control.cost)
        stage.measure_all(claim.asked, [again], range(count))
        control = _answers(stage, claim, again, count)
    if control.cost < target * (1 - LEAST_EQUAL):
        raise HeadwiseError(f"the control '{control.sentence}' ({kind}) {control.cost:.4f}; give it {{share}} or more")
    return control


def _answers(stage: OnHost, claim: Claim, sentence: str, count: int) -> judge.Answers:
    costs = [stage.measured(claim.asked, number, sentence).costs[claim.equal] for number in range(count)]
    return judge.Answers(sentence, stage.right(claim.asked, count, sentence), sum(costs) / count)
