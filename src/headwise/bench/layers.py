"""Layers compared: the same small host with each of some layer sentences, trained alike, asked at several lengths.

What is compared is told by a file (`benchmarks/layers.toml`). A side is a sentence; every side has the same host,
optimiser, steps and sequences, and is trained once for each seed.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from headwise.bench.protocol import digest
from headwise.errors import HeadwiseError, did_you_mean
from headwise.experiments import interval, rounded
from headwise.files import read_text
from headwise.layers.sentence import repeated_pattern
from headwise.models.host import HostConfig
from headwise.models.host_training import Schedule, begin, measured, train_host
from headwise.schema import Facts, Positive, Seed, checked
from headwise.tasks.sequences import SequenceTask, parse_sequence_task
from headwise.watch import Watch

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FLOAT_BYTES = 4
FIX = "write it like benchmarks/layers.toml"
Once = Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]  # what was kept under a key, else what is made


class AskedTask(Facts):
    """A task that sides are trained on, the lengths that they are asked at, the first of which is trained at, and the
    sides that stand in it."""

    task: str
    lengths: list[Positive]
    steps: Positive
    sides: list[str]

    @property
    def name(self) -> str:
        """What it is, for people."""
        return f"{self.task}, {self.steps} steps"

    def of(self, length: int) -> SequenceTask:
        """The task at a length."""
        made: SequenceTask = replace(parse_sequence_task(self.task), length=length)  # type: ignore[type-var]
        return made


class Host(Facts):
    """The sizes of the host and of its training, the same for all sides."""

    width: Positive
    heads: Positive
    depth: Positive
    batch: Positive
    lr: float
    held: Positive


class Comparison(Facts):
    """What the file says: a host, seeds, sides by name, those that every other is compared with, and tasks."""

    host: Host
    seeds: list[Seed]
    sides: dict[str, str]
    baselines: list[str]
    tasks: list[AskedTask]

    @classmethod
    def load(cls, path: Path) -> Comparison:
        """Read and check a file; HeadwiseError names what is wrong before any work starts."""
        try:
            said = tomllib.loads(read_text(path))
        except (ValueError, RecursionError) as error:
            raise HeadwiseError(f"cannot read {path} as TOML ({error}); {FIX}") from None
        found = checked(cls, said, str(path), HeadwiseError, FIX)
        if not 3 <= len(found.seeds) <= 20:
            raise HeadwiseError(f"{path}: {len(found.seeds)} seeds; give 3 to 20, of which an interval can be told")
        for name in (*found.baselines, *(side for task in found.tasks for side in task.sides)):
            if name not in found.sides:
                raise HeadwiseError(f"{path}: no side is called '{name}'; {did_you_mean(name, found.sides)}")
        used = {side for task in found.tasks for side in task.sides}
        if unused := sorted(set(found.sides) - used):
            raise HeadwiseError(f"{path}: the side '{unused[0]}' stands in no task; name it in one, or leave it out")
        for task in found.tasks:
            for length in task.lengths:
                task.of(length)
        for cell in found.cells():
            cell.config()
        return found

    def only(self, rows: Iterable[str]) -> Comparison:
        """Of the sides those of these names, or whose parts stand for systems of these numbers; and the baselines."""
        chosen = set(self.baselines)
        for row in rows:
            stands = {name for name, text in self.sides.items() if row.isdigit() and int(row) in systems_of(text)}
            if not stands and row not in self.sides:
                raise HeadwiseError(f"no side is or stands for '{row}'; {did_you_mean(row, self.sides)}")
            chosen |= stands or {row}
        tasks = [one.model_copy(update={"sides": [s for s in one.sides if s in chosen]}) for one in self.tasks]
        return self.model_copy(update={"tasks": tasks})

    def cells(self) -> list[Trained]:
        """Every training, by task, side and seed."""
        return [
            Trained(self.host, task, self.sides[side], side, seed)
            for task in self.tasks for seed in self.seeds for side in task.sides
        ]  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """One side, trained on one task from one seed."""

    host: Host
    task: AskedTask
    sentence: str
    side: str
    seed: int

    def config(self) -> HostConfig:
        """The host; RecipeError where the sentence means nothing."""
        host = self.host
        return HostConfig(
            self.sentence, vocab_size=self.task.of(self.task.lengths[0]).vocabulary, hidden_size=host.width,
            num_hidden_layers=host.depth, num_attention_heads=host.heads, intermediate_size=2 * host.width,
        )  # fmt: skip

    @property
    def label(self) -> str:
        """What it is, for people."""
        return f"{self.task.name}: {self.side}, seed {self.seed}"

    @property
    def key(self) -> str:
        """Its name in a folder of finished ones."""
        return digest(self.facts)

    @property
    def facts(self) -> dict[str, Any]:
        """All that decides its figures, as JSON data."""
        task = self.task.model_dump(exclude={"sides"})
        return {"host": self.host.model_dump(), "task": task, "sentence": self.sentence, "seed": self.seed}

    def run(self, watch: Watch) -> dict[str, Any]:
        """Train it, and ask it at every length."""
        host, task = self.host, self.task
        schedule = Schedule(task.steps, host.batch, host.lr, seed=self.seed, held=host.held)
        training = begin(self.config(), schedule, task.task)
        with tempfile.TemporaryDirectory() as folder:
            told = train_host(training, schedule, task.of(task.lengths[0]).sequence, Path(folder), watch)
        asked = {n: measured(training, schedule, task.of(n).sequence, watch) for n in task.lengths}
        accuracy = {str(n): one["accuracy"] for n, one in asked.items()}
        kept: dict[str, Any] = rounded({"accuracy": accuracy, "loss": told["loss"], "seconds": told["seconds"]})
        return kept | {"parameters": told["parameters"]}


Finished = Callable[[Trained, dict[str, Any]], None]  # is told of every training and its figures


def compared(said: Comparison, once: Once, watch: Watch, finished: Finished) -> dict[str, Any]:
    """Train what is not kept yet, and tell of every task what came of its sides."""
    cells = said.cells()
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for place, cell in enumerate(cells):
        label = f"{cell.label} ({place + 1} of {len(cells)})"
        result = once(cell.key, partial(cell.run, partial(_within, watch, label)))
        finished(cell, result)
        found.setdefault((cell.task.name, cell.side), []).append(result)
    tasks = [_told(said, task, {side: found[task.name, side] for side in task.sides}) for task in said.tasks]
    return {"host": said.host.model_dump(), "seeds": said.seeds, "baselines": said.baselines, "tasks": tasks}


def _within(watch: Watch, label: str, what: str, done: int, total: int) -> None:
    watch(f"{label}: {what}", done, total)


def _told(said: Comparison, task: AskedTask, runs: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Of one task: every side's accuracies with their intervals, and how it stands to the baselines."""
    baselines = [name for name in said.baselines if name in runs]
    sides = {}
    for name, seeds in runs.items():
        by_length = {str(n): interval([one["accuracy"][str(n)] for one in seeds]) for n in task.lengths}
        against = {other: _against(seeds, runs[other], str(task.lengths[-1])) for other in baselines if other != name}
        sides[name] = {
            "sentence": said.sides[name], "systems": systems_of(said.sides[name]), "accuracy": by_length,
            "seeds": [one["accuracy"] for one in seeds], "against": against,
            "parameters": seeds[0]["parameters"], "state_bytes": _state_bytes(said, task, name),
            "seconds": round(sum(one["seconds"] for one in seeds), 1),
        }  # fmt: skip
    return {"task": task.task, "lengths": task.lengths, "steps": task.steps, "sides": sides}


def _state_bytes(said: Comparison, task: AskedTask, side: str) -> int:
    """Bytes of the states of all layers after the longest text, in float32."""
    config = Trained(said.host, task, said.sides[side], side, said.seeds[0]).config()
    return config.state_bytes(task.lengths[-1], FLOAT_BYTES)


def _against(seeds: list[dict[str, Any]], others: list[dict[str, Any]], length: str) -> dict[str, Any]:
    """The difference at a length, paired by seed, with its 95 % interval, and what that says."""
    pairs = zip(seeds, others, strict=True)
    apart = interval([one["accuracy"][length] - other["accuracy"][length] for one, other in pairs])
    state = "above" if apart["low"] > 0 else "below" if apart["high"] < 0 else "open"
    return apart | {"state": state}


def systems_of(sentence: str) -> list[int]:
    """The systems that the parts of a sentence, or of a pattern of sentences, stand for."""
    layers = repeated_pattern(sentence)
    return sorted({number for layer in layers for part in layer.parts for number in part.card.systems})
