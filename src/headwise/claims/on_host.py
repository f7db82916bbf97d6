"""A host on which recipes are measured, document by document; what is finished is kept and not done again."""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from headwise import assets
from headwise.bench.frame import Frame
from headwise.bench.protocol import digest
from headwise.claims.answers import Examiner, Measured
from headwise.claims.calibrated import calibration_of, measures_of
from headwise.claims.claim import Asked, Equal
from headwise.claims.hosts import Document, Host, Stage
from headwise.errors import HeadwiseError
from headwise.kept import keep, kept
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import as_plan
from headwise.watch import Watch

CORE = ("forms", "kernels", "attention", "choose.py", "cache", "engine", "seams", "tasks", "claims/answers.py")
CALIBRATING = ("observe", "calibrate/measures", "claims/calibrated.py")
LEAST_DOCUMENTS, MOST_DOCUMENTS = 12, 40  # of a host
PLAN = ".plan"  # a sentence that ends so is the path of a plan file


@dataclass(frozen=True)
class Runs:
    """Where finished work is kept, and who is told of it."""

    folder: Path
    watch: Watch


class OnHost:
    """Recipes on one host. The model is loaded when something has to be measured."""

    def __init__(self, host: Host, runs: Runs) -> None:
        self.host, self.runs = host, runs
        self._examiner: tuple[tuple[int, str], Examiner] | None = None

    @cached_property
    def stage(self) -> Stage:
        """The loaded host."""
        self.runs.watch(f"loading {self.host.name}, or training it", 0, 0)
        return self.host.load(self.runs.folder)

    def cost(self, equal: Equal, asked: Asked, sentence: str) -> float:
        """Of dense attention's cost, what a recipe takes of the first document: bytes as predicted of a prompt, else
        measured."""
        if equal != "bytes held" or self.host.generates:
            return self.measured(asked, 0, sentence).costs[equal]
        frame = self._frame()
        return frame.bytes_of(self._plan(sentence)) / frame.dense_bytes

    def measure_all(self, asked: Asked, sentences: Iterable[str], documents: Iterable[int]) -> None:
        """Measure every recipe on every document, each of which is read once for all of them."""
        recipes = list(dict.fromkeys(sentences))
        for number in documents if recipes else ():
            for place, sentence in enumerate(recipes):
                self.runs.watch(f"{self.host.name}, {asked}, document {number}: {sentence}", place, len(recipes))
                self.measured(asked, number, sentence)

    def documents(self, asked: Asked) -> int:
        """How many documents it takes until dense attention has answered enough questions right."""
        right = 0
        for number in range(MOST_DOCUMENTS):
            right += sum(self.measured(asked, number, "").right)
            if right >= self.host.asks and number + 1 >= LEAST_DOCUMENTS:
                return number + 1
        raise HeadwiseError(
            f"dense attention answers {right} questions of {MOST_DOCUMENTS} documents right on {self.host.name}, "
            f"{self.host.asks} are needed to tell methods apart: give the host tasks that it can do"
        )

    def dense(self, asked: Asked, count: int) -> float:
        """Share of the questions of `count` documents that dense attention answers right."""
        right = [one for number in range(count) for one in self.measured(asked, number, "").right]
        return sum(right) / len(right)

    def right(self, asked: Asked, count: int, sentence: str) -> tuple[tuple[bool, ...], ...]:
        """By document, whether a recipe answers each question that dense attention answers right."""
        pairs = [(self.measured(asked, n, sentence).right, self.measured(asked, n, "").right) for n in range(count)]
        return tuple(tuple(own for own, able in zip(*pair, strict=True) if able) for pair in pairs)

    def measured(self, asked: Asked, number: int, sentence: str) -> Measured:
        """What a recipe makes of a document; from what is kept, where nothing that decides it has changed."""
        key = digest([self.host.facts(), asked, number, sentence, _code(sentence)])
        found = kept(self.runs.folder, key)
        if found is None:
            ran = self._ask(asked, number).measure(self._plan(sentence))
            found = keep(self.runs.folder, key, {"right": list(ran.right), "costs": ran.costs, "text": ran.text})
        return Measured(tuple(found["right"]), found["costs"], found["text"])

    def _ask(self, asked: Asked, number: int) -> Examiner:
        """The examiner of a document; the last one is kept, as its recording is what takes time and memory."""
        if self._examiner is None or self._examiner[0] != (number, asked):
            self._examiner = None
            self._examiner = (number, asked), Examiner(self.stage, self._document(number), asked)
        return self._examiner[1]

    @cache  # noqa: B019 (one of these lives as long as its host is measured)
    def _document(self, number: int) -> Document:
        return self.stage.document(number)

    def _plan(self, sentence: str) -> Plan:
        if sentence.endswith(PLAN):
            return as_plan(self.stage.seam, Plan.read(sentence))
        recipe = Recipe.parse(sentence)
        return self._frame(measures_of(recipe)).plan(recipe)

    def _frame(self, measures: Collection[str] = ()) -> Frame:
        """What bytes are counted for after the first document, with a calibration where measures are asked for."""
        tokens, found = self._document(0).ids.shape[1], None
        if measures:
            found = calibration_of(self.host, lambda: self.stage, measures, self.runs.folder, self.runs.watch)
        return Frame(self.stage.seam, tokens, self.stage.model.dtype, found)


@cache
def _code(sentence: str) -> str:
    """A hash of the sources that decide what a recipe, or a plan file, does."""
    if sentence.endswith(PLAN):
        return digest([_core(), Plan.read(sentence).digest])
    recipe, files = Recipe.parse(sentence), list[Path]()
    for part in recipe.parts:
        own = Path(inspect.getfile(type(part)))
        files += own.parent.glob("*.py") if own.name == "__init__.py" else [own]
    if measures_of(recipe):
        files += [path for name in CALIBRATING for path in _files(_ROOT / name)]
    return digest([_core(), _contents(files)])


@cache
def _core() -> str:
    """A hash of the sources that decide what any recipe does."""
    rooms = [_ROOT / name for name in CORE]
    shared = (_ROOT / "methods").glob("*.py")
    return digest(_contents([*shared, *(path for room in rooms for path in _files(room))]))


def _files(room: Path) -> Iterable[Path]:
    return [room] if room.suffix else room.rglob("*.py")


def _contents(files: Iterable[Path]) -> list[list[str]]:
    return [[os.path.relpath(path, _ROOT), path.read_text(encoding="utf-8")] for path in sorted(set(files))]


_ROOT = Path(assets.__file__).parents[1]
