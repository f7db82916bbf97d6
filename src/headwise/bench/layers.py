"""Layers compared: the same small host with each of some layer sentences, trained alike, asked at several lengths.

What is compared is told by a file (`benchmarks/layers.toml`). A side is a sentence; every side has the same host,
optimiser, steps and sequences, and is trained from each seed with each learning rate of the file. The rate that a side
is then asked with is the one of its least loss, over all seeds, on sequences that it is neither trained on nor asked.

Statements that are added to a file later are judged on the result that there is:

    python -m headwise.bench.layers benchmarks/states.toml docs/data/states.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from headwise.bench.protocol import digest
from headwise.bench.statements import Statement, judged
from headwise.errors import HeadwiseError, did_you_mean
from headwise.experiments import interval, rounded
from headwise.files import read_text, write_json
from headwise.findings import as_data
from headwise.layer_parts import parse_feed
from headwise.layers.sentence import read_sentences
from headwise.models.host import HostConfig
from headwise.models.host_training import HELD, Schedule, Sequences, begin, measured, train_host
from headwise.schema import Count, Facts, Positive, Seed, checked
from headwise.tasks.sequences import SequenceTask, marked, parse_sequence_task
from headwise.training_hooks import parse_hooks
from headwise.watch import Watch

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

VALIDATION = 2 * HELD  # the first seed of the sequences that learning rates are chosen on
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
    lrs: list[float]
    held: Positive


class Side(Facts):
    """What is compared: the layers as a pattern of sentences, and what of the host is otherwise in this side.

    hooks: what is done beside the task in training. marks: a landmark stands after so many tokens each; 0 is none.
    depth, heads: 0 is the host's. feed: what follows attention in a layer; inner: its channels, by which sides come to
    equal numbers of parameters, 0 is twice the width.
    """

    layers: str
    hooks: str = ""
    marks: Count = 0
    depth: Count = 0
    heads: Count = 0
    feed: str = "gated_feed"
    inner: Count = 0


class Comparison(Facts):
    """What the file says: a host, seeds, sides by name, those that every other is compared with, and tasks; and what
    papers state of the sides, with the limits that are to be cleared."""

    host: Host
    seeds: list[Seed]
    sides: dict[str, str | Side]
    baselines: list[str]
    tasks: list[AskedTask]
    statements: list[Statement] = []

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
        if not 1 <= len(set(found.host.lrs)) == len(found.host.lrs) <= 8 or min(found.host.lrs) <= 0:
            raise HeadwiseError(f"{path}: lrs {found.host.lrs}; give 1 to 8 different learning rates above 0")
        for name in (*found.baselines, *(side for task in found.tasks for side in task.sides)):
            if name not in found.sides:
                raise HeadwiseError(f"{path}: no side is called '{name}'; {did_you_mean(name, found.sides)}")
        used = {side for task in found.tasks for side in task.sides}
        if unused := sorted(set(found.sides) - used):
            raise HeadwiseError(f"{path}: the side '{unused[0]}' stands in no task; name it in one, or leave it out")
        for task in found.tasks:
            for length in task.lengths:
                task.of(length)
        for statement in found.statements:
            statement.check(found.tasks, str(path))
        for cell in found.cells():
            cell.config()
            parse_hooks(cell.side.hooks)
        return found

    def side(self, name: str) -> Side:
        """A side, of which a file may say the sentence alone."""
        said = self.sides[name]
        return Side(layers=said) if isinstance(said, str) else said

    def only(self, rows: Iterable[str]) -> Comparison:
        """Of the sides those of these names, or whose parts stand for systems of these numbers; and the baselines."""
        chosen = set(self.baselines)
        for row in rows:
            stands = {name for name in self.sides if row.isdigit() and int(row) in systems_of(self.side(name))}
            if not stands and row not in self.sides:
                raise HeadwiseError(f"no side is or stands for '{row}'; {did_you_mean(row, self.sides)}")
            chosen |= stands or {row}
        tasks = [one.model_copy(update={"sides": [s for s in one.sides if s in chosen]}) for one in self.tasks]
        return self.model_copy(update={"tasks": tasks})

    def cells(self) -> list[Trained]:
        """Every training, by task, seed, side and learning rate."""
        return [
            Trained(self.host, task, self.side(name), name, seed, lr)
            for task in self.tasks for seed in self.seeds for name in task.sides for lr in self.host.lrs
        ]  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """One side, trained on one task from one seed with one learning rate."""

    host: Host
    task: AskedTask
    side: Side
    name: str
    seed: int
    lr: float

    def config(self) -> HostConfig:
        """The host; RecipeError where the sentence means nothing."""
        host, side = self.host, self.side
        vocabulary = self.task.of(self.task.lengths[0]).vocabulary + (1 if side.marks else 0)
        return HostConfig(
            side.layers, vocab_size=vocabulary, hidden_size=host.width, num_hidden_layers=side.depth or host.depth,
            num_attention_heads=side.heads or host.heads, intermediate_size=side.inner or 2 * host.width,
            feed=side.feed,
        )  # fmt: skip

    @property
    def label(self) -> str:
        """What it is, for people."""
        return f"{self.task.name}: {self.name}, seed {self.seed}, rate {self.lr:g}"

    @property
    def key(self) -> str:
        """Its name in a folder of finished ones."""
        return digest(self.facts)

    @property
    def facts(self) -> dict[str, Any]:
        """All that decides its figures, as JSON data."""
        task, host = self.task.model_dump(exclude={"sides"}), self.host.model_dump(exclude={"lrs"})
        return {"host": host, "task": task, "side": self.side.model_dump(), "seed": self.seed, "lr": self.lr}

    def sequences(self, length: int) -> Sequences:
        """The task's sequences at a length, with landmarks where the side has them."""
        task = self.task.of(length)
        return marked(task, self.side.marks) if self.side.marks else task.sequence

    def run(self, watch: Watch) -> dict[str, Any]:
        """Train it, and ask it at every length."""
        host, task = self.host, self.task
        schedule = Schedule(task.steps, host.batch, self.lr, seed=self.seed, held=host.held)
        training = begin(self.config(), schedule, task.task, self.side.hooks)
        own = self.sequences(task.lengths[0])
        with tempfile.TemporaryDirectory() as folder:
            told = train_host(training, schedule, own, Path(folder), watch)
        chosen_on = measured(training, schedule, own, watch, VALIDATION)
        asked = {n: measured(training, schedule, self.sequences(n), watch) for n in task.lengths}
        accuracy = {str(n): one["accuracy"] for n, one in asked.items()}
        last = asked[task.lengths[-1]]
        kept: dict[str, Any] = rounded(
            {
                "accuracy": accuracy, "loss": told["loss"], "validation": chosen_on["loss"], "read": last["read"],
                "seconds": told["seconds"],
            }
        )  # fmt: skip
        return kept | {"parameters": told["parameters"], "state_bytes": last["state_bytes"]}


Finished = Callable[[Trained, dict[str, Any]], None]  # is told of every training and its figures


def compared(said: Comparison, once: Once, watch: Watch, finished: Finished) -> dict[str, Any]:
    """Train what is not kept yet, and tell of every task what came of its sides."""
    cells = said.cells()
    found: dict[tuple[str, str], dict[float, list[dict[str, Any]]]] = {}
    for place, cell in enumerate(cells):
        label = f"{cell.label} ({place + 1} of {len(cells)})"
        result = once(cell.key, partial(cell.run, partial(_within, watch, label)))
        finished(cell, result)
        found.setdefault((cell.task.name, cell.name), {}).setdefault(cell.lr, []).append(result)
    tasks = [_told(said, task, {side: found[task.name, side] for side in task.sides}) for task in said.tasks]
    return {"host": said.host.model_dump(), "seeds": said.seeds, "baselines": said.baselines, "tasks": tasks}


def _within(watch: Watch, label: str, what: str, done: int, total: int) -> None:
    watch(f"{label}: {what}", done, total)


def _told(said: Comparison, task: AskedTask, runs: Mapping[str, dict[float, list[dict[str, Any]]]]) -> dict[str, Any]:
    """Of one task: every side's accuracies with their intervals, and how it stands to the baselines."""
    best = {name: min(rates, key=lambda lr: _mean(rates[lr], "validation")) for name, rates in runs.items()}
    chosen = {name: rates[best[name]] for name, rates in runs.items()}
    baselines = [name for name in said.baselines if name in runs]
    sides = {}
    for name, seeds in chosen.items():
        side = said.side(name)
        by_length = {str(n): interval([one["accuracy"][str(n)] for one in seeds]) for n in task.lengths}
        against = {other: _against(seeds, chosen[other], str(task.lengths[-1])) for other in baselines if other != name}
        sides[name] = {
            "sentence": side.layers, "otherwise": _otherwise(side), "systems": systems_of(side), "lr": best[name],
            "rates": rounded({f"{lr:g}": _mean(one, "validation") for lr, one in runs[name].items()}),
            "accuracy": by_length, "seeds": [one["accuracy"] for one in seeds], "against": against,
            "by_seed": {what: [one[what] for one in seeds] for what in ("loss", "read")},
            "parameters": seeds[0]["parameters"], "state_bytes": seeds[0]["state_bytes"],
            "read": rounded(_mean(seeds, "read")), "loss": rounded(_mean(seeds, "loss")),
            "seconds": round(sum(one["seconds"] for rate in runs[name].values() for one in rate), 1),
        }  # fmt: skip
    return {"task": task.task, "lengths": task.lengths, "steps": task.steps, "sides": sides}


def _mean(runs: list[dict[str, Any]], what: str) -> float:
    return float(sum(one[what] for one in runs) / len(runs))


def _otherwise(side: Side) -> str:
    """What a side has beside its sentence, for people."""
    said = side.model_dump(exclude={"layers"}, exclude_defaults=True)
    return ", ".join(f"{name} {value}" for name, value in said.items())


def _against(seeds: list[dict[str, Any]], others: list[dict[str, Any]], length: str) -> dict[str, Any]:
    """The difference at a length, paired by seed, with its 95 % interval, and what that says."""
    pairs = zip(seeds, others, strict=True)
    apart = interval([one["accuracy"][length] - other["accuracy"][length] for one, other in pairs])
    state = "above" if apart["low"] > 0 else "below" if apart["high"] < 0 else "open"
    return apart | {"state": state}


def systems_of(side: Side | str) -> list[int]:
    """The systems that the parts and hooks of a side stand for."""
    said = Side(layers=side) if isinstance(side, str) else side
    cards = [part.card for sentence in read_sentences(said.layers) for part in sentence.parts]
    cards += [hook.card for hook in parse_hooks(said.hooks)] + [parse_feed(said.feed).card]
    return sorted({number for card in cards for number in card.systems})


def main(arguments: list[str]) -> None:
    """Judge the statements of a file on a result of it that there is."""
    if len(arguments) != 2:
        raise SystemExit("use: python -m headwise.bench.layers comparison.toml result.json")
    said, path = Comparison.load(Path(arguments[0])), Path(arguments[1])
    result = json.loads(read_text(path))
    found = judged(said.statements, result)
    write_json(path, result | {"findings": as_data(found)})
    for one in found:
        print(f"row {one.row}, {one.state}: {one.says}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except HeadwiseError as error:
        raise SystemExit(f"error: {error}") from None
