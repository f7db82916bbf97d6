"""A comparison from its settings to one JSON object: cells, rows, verdicts, and what produced them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headwise.bench.arms import Arm
from headwise.bench.cells.pool import Executor, run_cells
from headwise.bench.cells.worker import Cell, Setting
from headwise.bench.judging.frontier import frontier
from headwise.bench.judging.judge import rows_of
from headwise.bench.protocol import digest, record
from headwise.recipe import Recipe
from headwise.tasks.taskbook import build_task, facts_of
from headwise.watch import Watch


@dataclass(frozen=True)
class Bench:
    """What is compared on what. tasks: names with settings; contexts: tokens of a document with its longest ask."""

    setting: Setting
    arms: tuple[Arm, ...]
    tasks: tuple[str, ...]
    contexts: tuple[int, ...]

    @property
    def cells(self) -> list[Cell]:
        """Every arm on every task at every length; those that share documents are neighbours."""
        return [Cell(task, context, arm) for task in self.tasks for context in self.contexts for arm in self.arms]

    def run(
        self,
        *,
        executor: Executor,
        folder: Path | None,
        watch: Watch,
        name: str,
        each: Callable[[dict[str, Any]], None] = lambda result: None,
    ) -> dict[str, Any]:
        """The result; `name` is the model's name as the user gave it. Timings stand apart, under `timings`.

        folder, each: see `run_cells`.
        """
        results = run_cells(self.setting, self.cells, executor=executor, folder=folder, watch=watch, each=each)
        rows = rows_of(results, self.arms, self.setting.seed)
        return {
            "kind": "bench",
            "protocol": self._record(results, name),
            "rows": rows,
            "frontier": frontier(rows),
            "cards": _cards(rows),
            "timings": _timings(results, self.arms),
        }

    def _record(self, results: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
        data = {f"{one['cell']['task']} {one['cell']['context']}": one["data"] for one in results}
        settings = {
            **{
                key: value
                for key, value in asdict(self.setting).items()
                if key in ("dtype", "device", "items", "calibrated")
            },
            "tasks": [facts_of(build_task(task)) for task in self.tasks],
            "contexts": list(self.contexts),
            "prompt": "read in one pass; a dense reading is shared by every plan without a prefill part",
        }
        plans = {str(one["cell"]["arm"]): [document["plan_digest"] for document in one["documents"]] for one in results}
        arms = [arm.facts() | {"plans": plans[str(arm.facts())]} for arm in self.arms]
        model = {"name": name, "fingerprint": self.setting.fingerprint}
        return record(data=digest(data), settings=settings, arms=arms, model=model, seed=self.setting.seed)


def _cards(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The card of every method that a row's recipes name."""
    recipes = [Recipe.parse(sentence) for row in rows for sentence in row.get("recipes", ())]
    parts = {part.name: part for recipe in recipes for part in recipe.parts}
    return {name: {"part": part.part, **asdict(part.own_card)} for name, part in sorted(parts.items())}


def _timings(results: Sequence[dict[str, Any]], arms: Sequence[Arm]) -> dict[str, Any]:
    """Seconds of each arm, in all and for one new token: rough, as processes ran beside each other."""
    told = {}
    for arm in arms:
        own = [one for one in results if one["cell"]["arm"] == arm.facts()]
        tokens = sum(len(sample["tokens"]) for one in own for sample in one["samples"])
        seconds = sum(one["timings"]["answers_s"] for one in own)
        told[arm.label] = {
            "seconds": sum(one["timings"]["seconds"] for one in own),
            "token_ms": 1000 * seconds / tokens if tokens else None,
        }
    return told
