"""Statements of papers that can be run: an experiment is a file of `theory/`, and here is what all of them share.

An experiment draws figures once for each of several seeds. Its statement is made of `Part`s: a measure, a limit, and a
control, for which the same limit must not hold. What a part comes to is told by 95 % intervals over the seeds, never by
one of them. Declared here, below whatever runs, so that lists read the cards.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeAlias, TypeVar

from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict

from headwise.assets import theory_file
from headwise.errors import HeadwiseError
from headwise.files import read_json
from headwise.knobs import Knobs
from headwise.registry import with_settings
from headwise.rooms import Room
from headwise.sentence import Call, read_call, written

EXAMPLE = "write an experiment such as head_size(tokens=16, seeds=10)"
Seeds: TypeAlias = Annotated[int, Ge(3), Le(20)]
First: TypeAlias = Annotated[int, Ge(0), Le(2**31)]
Steps: TypeAlias = Annotated[int, Ge(1), Le(100_000)]
Size: TypeAlias = Annotated[int, Ge(2), Le(256)]  # of vectors, texts and sets in experiments of seconds

# Student's t that 97.5 % lie below, by degrees of freedom from 2, as an interval over 3 to 20 seeds needs it.
STUDENT = (4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
           2.110, 2.101, 2.093)  # fmt: skip
DIGITS = 6  # of a figure that is kept


@dataclass(frozen=True)
class ExperimentCard:
    """What a reader of an experiment needs to know. statement: of the paper, that it tests.

    paper: with its section or theorem. setting: the knobs that the paper itself has. differs: where this does
    otherwise, and why. systems: rows of the list of published systems that it stands for; leaves_out: what of these it
    does not test. seconds: about how long it takes on two cores.
    """

    title: str
    statement: str
    paper: str
    setting: str
    seconds: int
    systems: tuple[int, ...]
    differs: str = "nothing"
    leaves_out: str = ""


@dataclass(frozen=True)
class Part:
    """One thing that a statement says: the measure `of` lies `above` or `below` a limit, and `control` does not.

    without: what the control is, in words.
    """

    says: str
    of: str
    control: str
    without: str
    below: float | None = None
    above: float | None = None

    def judged(self, draws: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What became of it: `shown` where the measure's interval keeps to the limit and the control's lies beyond;
        `negative` where the measure's lies beyond; else `open`. margin: from the limit to the nearer end."""
        limit, sign = (self.below, 1.0) if self.below is not None else (self.above, -1.0)
        assert limit is not None
        found, control = (interval([draw["measures"][name] for draw in draws]) for name in (self.of, self.control))
        near, far = ("high", "low") if sign > 0 else ("low", "high")
        margin = sign * (limit - found[near])
        fails = sign * (control[far] - limit) >= 0
        state = "negative" if sign * (found[far] - limit) >= 0 else "shown" if margin > 0 and fails else "open"
        told = asdict(self) | {"found": found, "control_found": control, "margin": rounded(margin), "state": state}
        return told | {"control_fails": fails}


@dataclass(frozen=True)
class Panel:
    """How lines of an experiment are drawn: what its axes are, which of them are logarithmic ("x", "y" or "xy")."""

    x: str
    y: str
    log: str = ""


Progress = Callable[[int, int], None]  # seeds done, seeds in all
Once = Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]  # what was kept under a key, else what is made


def fresh(_: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Keeps nothing."""
    return make()


@dataclass(frozen=True, kw_only=True)
class Experiment(Knobs, ABC):
    """A frozen dataclass whose fields are its knobs. parts: what its statement says. panels: of its picture, by title.
    built: measures of parts that hold by how a thing is built, whatever it learns; such parts alone show nothing.

    seeds: how many draws; seed: the first of them.
    """

    name: ClassVar[str]
    card: ClassVar[ExperimentCard]
    parts: ClassVar[tuple[Part, ...]]
    built: ClassVar[tuple[str, ...]] = ()
    panels: ClassVar[dict[str, Panel]] = {}
    seeds: Seeds = 5
    seed: First = 0

    @abstractmethod
    def draw(self, seed: int) -> dict[str, Any]:
        """The figures of one seed, JSON data: `measures` by name; and for the picture, by the title of its panel,
        `lines`, each a list of [x, y] by name, or `maps`, rows of cells."""

    def run(self, progress: Progress = lambda done, total: None, once: Once = fresh) -> dict[str, Any]:
        """The figures of all seeds."""
        draws = []
        for number in range(self.seeds):
            progress(number, self.seeds)
            seed = self.seed + number
            draws.append(once(f"seed-{seed}", partial(self._figures, seed)))
        progress(self.seeds, self.seeds)
        return {"experiment": self.name, "sentence": str(self), "draws": draws}

    def _figures(self, seed: int) -> dict[str, Any]:
        """Of one seed, in as many digits as are kept."""
        found: dict[str, Any] = rounded(self.draw(seed))
        return found

    def check(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """The verdict on figures that `run` made: `shown` where all parts are; `shown in part` where some are and none
        is negative; `negative` where one is and none is shown; else `open`. Parts that are `built` do not count among
        the some."""
        if figures.get("experiment") != self.name:
            told = f"these are figures of {figures.get('experiment')!r}"
            raise HeadwiseError(f"{self.name}: {told}; check them with the experiment that made them")
        parts = [part.judged(figures["draws"]) for part in self.parts]
        states = [part["state"] for part in parts]
        if set(states) == {"shown"}:
            state = "shown"
        elif any(part["state"] == "shown" and part["of"] not in self.built for part in parts):
            state = "open" if "negative" in states else "shown in part"
        else:
            state = "negative" if "negative" in states else "open"
        return {"state": state, "parts": parts}

    def __str__(self) -> str:
        knobs = {one.name: getattr(self, one.name) for one in fields(self)}
        told = ", ".join(f"{knob}={written(value)}" for knob, value in knobs.items() if value != _default(self, knob))
        return f"{self.name}({told})" if told else self.name


def _default(made: Experiment, knob: str) -> Any:
    return next(one.default for one in fields(made) if one.name == knob)


Kind = TypeVar("Kind", bound=type[Experiment])
EXPERIMENTS: Room[type[Experiment]] = Room(
    "experiment", "headwise.theory", "headwise.lens.trials", "headwise.context.trials", "headwise.vision.trials"
)


def register(name: str) -> Callable[[Kind], Kind]:
    """Class decorator of an experiment: makes it known by its name."""

    def add(cls: Kind) -> Kind:
        cls.name = name
        EXPERIMENTS.add(name, cls)
        return cls

    return add


def experiment(text: str) -> Experiment:
    """The experiment of a sentence such as `head_size(tokens=16)`; RecipeError with the nearest name or knob."""
    call: Call = read_call(text, EXAMPLE)
    made: Experiment = with_settings(EXPERIMENTS.get(call.name), call)
    return made


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean, and the ends of its 95 % interval by Student's t."""
    count = len(values)
    mean = sum(values) / count
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = STUDENT[count - 3] * spread / math.sqrt(count)
    found: dict[str, float] = rounded({"mean": mean, "low": mean - half, "high": mean + half})
    return found


def rounded(found: Any) -> Any:
    """JSON data with every number of as many digits as are kept."""
    if isinstance(found, Mapping):
        return {str(name): rounded(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [rounded(value) for value in found]
    return float(f"{found:.{DIGITS}g}") if isinstance(found, float) else found


class Run(BaseModel):
    """One run of an experiment, of the file that `make theory` writes. machine: where it is not the file's."""

    model_config = ConfigDict(extra="forbid")

    experiment: str
    sentence: str
    draws: list[dict[str, Any]]
    verdict: dict[str, Any]
    panels: dict[str, dict[str, str]]
    seconds: float
    machine: dict[str, str | int] | None = None


class Runs(BaseModel):
    """The file that `make theory` writes."""

    model_config = ConfigDict(extra="forbid")

    machine: dict[str, str | int]
    versions: dict[str, str]
    runs: list[Run]


def shown_runs(path: Path | None = None) -> Runs | None:
    """The runs of a file, by default of the one that ships; None where there is no file."""
    path = path or theory_file()
    return read_json(path, Runs, HeadwiseError, "make it again with `make theory`") if path.exists() else None


def joined(kept: Runs, made: dict[str, Any]) -> dict[str, Any]:
    """The runs `made` with those that are kept of other experiments; a run names its machine where it is not the same
    as that of those which were made now."""
    own = {run["experiment"] for run in made["runs"]}
    others = [
        run.model_copy(update={"machine": run.machine or kept.machine}).model_dump(exclude_none=True)
        for run in kept.runs
        if run.experiment not in own
    ]
    return {**made, "runs": sorted([*others, *made["runs"]], key=lambda run: str(run["experiment"]))}


def trials() -> dict[int, list[tuple[str, str]]]:
    """By the number of a system, the names of its experiments and what they came to: `shown in part` at most where the
    card says that something of it is left out."""
    found: dict[int, list[tuple[str, str]]] = {}
    for run in known.runs if (known := shown_runs()) else ():
        card = EXPERIMENTS.get(run.experiment).card
        state = "shown in part" if card.leaves_out and run.verdict["state"] == "shown" else run.verdict["state"]
        for number in card.systems:
            found.setdefault(number, []).append((run.experiment, state))
    return found
