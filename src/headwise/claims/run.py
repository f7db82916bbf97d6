"""Runs claims: host by host, document by document, every recipe once; what is finished is kept and not done again."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from headwise import assets
from headwise.bench.frame import Frame
from headwise.bench.protocol import digest
from headwise.calibrate.calibration import Calibration
from headwise.claims import equal, judge
from headwise.claims.answers import Examiner, Measured
from headwise.claims.claim import CONTROLS, Claim
from headwise.claims.hosts import HOSTS, Document, Host, Stage
from headwise.errors import HeadwiseError
from headwise.kept import keep, kept
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.watch import Watch

CORE = ("forms", "kernels", "attention", "choose.py", "cache", "engine", "seams", "tasks", "claims/answers.py")
LEAST_DOCUMENTS, MOST_DOCUMENTS = 12, 40  # of a host
LEAST_EQUAL = 0.05  # of the method's measured cost, that a control may lack


@dataclass(frozen=True)
class Runs:
    """Where finished work is kept, and who is told of it. calibrations: a folder of files named after hosts."""

    folder: Path | None
    watch: Watch
    calibrations: Path


def run(claims: Sequence[Claim], runs: Runs, only: Sequence[str] = ()) -> dict[str, Any]:
    """Every claim with its state and what was measured on each of its hosts. only: hosts to run on, all by default."""
    names = [name for name in dict.fromkeys(name for one in claims for name in one.hosts) if not only or name in only]
    found: dict[str, dict[str, Any]] = {one.name: {} for one in claims}
    hosts = {}
    for name in names:
        own = [one for one in claims if name in one.hosts]
        stage = OnHost(HOSTS.get(name), runs)
        hosts[name] = HOSTS.get(name).facts()
        for one, result in stage.results(own):
            found[one.name][name] = result
    return {
        "hosts": hosts,
        "claims": [one.facts() | {"state": judge.state(found[one.name]), "results": found[one.name]} for one in claims],
    }


class OnHost:
    """Claims on one host. The model is loaded when something has to be measured."""

    def __init__(self, host: Host, runs: Runs) -> None:
        self.host, self.runs = host, runs
        self._examiner: tuple[tuple[int, str], Examiner] | None = None

    @cached_property
    def stage(self) -> Stage:
        """The loaded host."""
        return self.host.load(self.runs.folder)

    @cached_property
    def calibration(self) -> Calibration | None:
        """What was measured of the host's model, where that was done."""
        path = assets.embedded_calibration() if self.host.model_name == "embedded" else self._calibration_path
        return Calibration.load(path) if path.exists() else None

    @property
    def _calibration_path(self) -> Path:
        return self.runs.calibrations / f"{self.host.name}.calibration"

    def results(self, claims: Sequence[Claim]) -> Iterator[tuple[Claim, dict[str, Any]]]:
        """Each claim with what came of it here. Recipes are measured document by document, for all claims together."""
        sentences = {one.name: self._sentences(one) for one in claims}
        for asked in dict.fromkeys(one.asked for one in claims):
            wanted = {one.name: sentences[one.name] for one in claims if one.asked == asked}
            self._measure_all(asked, [s for arms in wanted.values() if isinstance(arms, dict) for s in arms.values()])
        for one in claims:
            arms = sentences[one.name]
            yield one, {"refused": arms} if isinstance(arms, str) else self._result(one, arms)

    def _sentences(self, claim: Claim) -> dict[str, str] | str:
        """By kind, the recipes with their numbers fitted on the first document; or why one of them cannot run."""
        try:
            cost = self._cost(claim, claim.method)
            arms = {"method": claim.method}
            for kind in CONTROLS:
                open_one = claim.controls[kind]
                arms[kind] = (
                    equal.fitted(open_one, cost, lambda sentence: self._cost(claim, sentence))
                    if equal.is_open(open_one)
                    else open_one
                )
        except HeadwiseError as error:
            return str(error)
        return arms

    def _cost(self, claim: Claim, sentence: str) -> float:
        """Of dense attention's cost, what a recipe takes of the first document: bytes as predicted, others measured."""
        if claim.equal != "bytes held":
            return self._measured(claim.asked, 0, sentence).costs[claim.equal]
        return self._frame.bytes_of(self._plan(sentence)) / self._frame.dense_bytes

    def _measure_all(self, asked: str, sentences: Iterable[str]) -> None:
        recipes = list(dict.fromkeys(sentences))
        for number in range(self._documents(asked)) if recipes else ():
            for place, sentence in enumerate(recipes):
                self.runs.watch(f"{self.host.name}, {asked}, document {number}: {sentence}", place, len(recipes))
                self._measured(asked, number, sentence)

    def _documents(self, asked: str) -> int:
        """How many documents it takes until dense attention has answered enough questions right."""
        right = 0
        for number in range(MOST_DOCUMENTS):
            right += sum(self._measured(asked, number, "").right)
            if right >= self.host.asks and number + 1 >= LEAST_DOCUMENTS:
                return number + 1
        raise HeadwiseError(
            f"dense attention answers {right} questions of {MOST_DOCUMENTS} documents right on {self.host.name}, "
            f"{self.host.asks} are needed to tell methods apart: give the host tasks that it can do"
        )

    def _result(self, claim: Claim, arms: dict[str, str]) -> dict[str, Any]:
        count = self._documents(claim.asked)
        answers = {kind: self._answers(claim, sentence, count) for kind, sentence in arms.items()}
        method = answers.pop("method")
        for kind, control in answers.items():
            if control.cost < method.cost * (1 - LEAST_EQUAL):
                why = f"{control.cost:.4f} of dense attention's {claim.equal}, {claim.method} {method.cost:.4f}"
                return {"refused": f"the control '{control.sentence}' ({kind}) took {why}: give it {{share}} or more"}
        result = judge.on_host(claim, method, answers)
        dense = [self._measured(claim.asked, number, "").right for number in range(count)]
        return {"dense": round(sum(map(sum, dense)) / sum(map(len, dense)), 4)} | result

    def _answers(self, claim: Claim, sentence: str, count: int) -> judge.Answers:
        right, cost = [], 0.0
        for number in range(count):
            found = self._measured(claim.asked, number, sentence)
            plain = self._measured(claim.asked, number, "")
            right.append(tuple(own for own, able in zip(found.right, plain.right, strict=True) if able))
            cost += found.costs[claim.equal] / count
        return judge.Answers(sentence, tuple(right), cost)

    def _measured(self, asked: str, number: int, sentence: str) -> Measured:
        """What a recipe makes of a document; from what is kept, where nothing that decides it has changed."""
        key = digest([self.host.facts(), asked, number, sentence, _code(sentence)])
        found = kept(self.runs.folder, key)
        if found is None:
            ran = self._ask(asked, number).measure(self._plan(sentence))
            found = keep(self.runs.folder, key, {"right": list(ran.right), "costs": ran.costs})
        return Measured(tuple(found["right"]), found["costs"])

    def _ask(self, asked: str, number: int) -> Examiner:
        """The examiner of a document; the last one is kept, as its recording is what takes time and memory."""
        if self._examiner is None or self._examiner[0] != (number, asked):
            self._examiner = None
            self._examiner = (number, asked), Examiner(self.stage, self._document(number), asked)  # type: ignore[arg-type]
        return self._examiner[1]

    @cache  # noqa: B019 (one of these lives as long as its host's claims)
    def _document(self, number: int) -> Document:
        return self.stage.document(number)

    def _plan(self, sentence: str) -> Plan:
        recipe = Recipe.parse(sentence)
        if self.calibration is None and (needed := [part.name for part in recipe.parts if part.own_card.calibrated]):
            raise HeadwiseError(
                f"{needed[0]} needs a calibration of {self.host.name}: `headwise calibrate {self.host.model_name} "
                f"--out {self._calibration_path}`"
            )
        return self._frame.plan(recipe)

    @property
    def _frame(self) -> Frame:
        """What bytes are counted for after the first document."""
        tokens = self._document(0).ids.shape[1]
        return Frame(self.stage.seam, tokens, self.stage.model.dtype, self.calibration)


@cache
def _code(sentence: str) -> str:
    """A hash of the sources that decide what a recipe does."""
    root = Path(assets.__file__).parents[1]
    files = [path for name in CORE for path in ([root / name] if name.endswith(".py") else (root / name).rglob("*.py"))]
    for part in Recipe.parse(sentence).parts:
        own = Path(inspect.getfile(type(part)))
        files += own.parent.glob("*.py") if own.name == "__init__.py" else [own]
    return digest([[os.path.relpath(path, root), path.read_text(encoding="utf-8")] for path in sorted(set(files))])
