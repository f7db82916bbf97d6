"""The published systems that headwise is to hold: what each is, what working means, and what stands for it here."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict

from headwise.arrangers import ARRANGERS
from headwise.assets import claims_file, systems_list
from headwise.conversions import CONVERSIONS
from headwise.decoders import DECODERS
from headwise.drafters import DRAFTERS
from headwise.errors import HeadwiseError, did_you_mean
from headwise.experiments import EXPERIMENTS, trials
from headwise.explanations import EXPLANATIONS
from headwise.files import read_json
from headwise.fillers import FILLERS
from headwise.findings import findings
from headwise.layer_parts import FEEDS, all_layer_parts
from headwise.lenses import LENSES
from headwise.pruners import PRUNERS
from headwise.registry import all_methods
from headwise.training_hooks import HOOKS


@dataclass(frozen=True)
class System:
    """A published system. number: as cards and claims cite it. tier: 1 is what most users would ask for first.

    kind: method, mechanism, application and so on, of a `family`. room: where it belongs. title: of its paper.
    works_when: what has to hold for it to count as working.
    """

    number: int
    name: str
    tier: int
    family: str
    kind: str
    room: str
    title: str
    works_when: str

    @property
    def state(self) -> str:
        """What its claims, experiments and findings show, in the words of `claims/judge.py`: shown, shown in part,
        negative, open or refused; "exact" where nothing but its equations was tested; "no claim" where something stands
        for it of which nothing was shown or refuted, and "not here"."""
        found = {one.state for one in claimed().get(self.number, ())}
        found |= {state for _, state in tried().get(self.number, ())}
        found |= {one.state for one in findings().get(self.number, ())}
        found = found - {"exact"} or found  # of what something is good for, equations say nothing
        if not found:
            return "no claim" if self.here else "not here"
        if len(found) == 1:
            return found.pop()
        if found & {"shown", "shown in part"}:
            return "shown in part"
        return "open" if "open" in found else "negative"

    @property
    def here(self) -> tuple[str, ...]:
        """The methods, and what else has a card, that say that they stand for it, or for a part of it."""
        return standing().get(self.number, ())


@cache
def systems() -> tuple[System, ...]:
    """All systems, by number."""
    with systems_list().open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return tuple(System(int(n), name, int(tier), *rest) for n, name, tier, *rest in rows[1:])


def standing() -> dict[int, tuple[str, ...]]:
    """By the number of a system, the methods that stand for it, and what else does as "lens NAME", "drafter NAME" and
    so on; a report that nothing has a card for is "run SCRIPT"."""
    cited = {name: cls.card.systems for name, cls in all_methods().items()}  # type: ignore[attr-defined]
    others: dict[str, dict[str, Any]] = {
        "lens": LENSES.all(), "drafter": DRAFTERS.all(), "decoder": DECODERS.all(), "layer": all_layer_parts(),
        "theory": EXPERIMENTS.all(), "arranger": ARRANGERS.all(), "feed": FEEDS.all(),
        "hook": HOOKS.all(), "explanation": EXPLANATIONS.all(), "filler": FILLERS,
        "pruner": PRUNERS.all(), "conversion": CONVERSIONS.all(),
    }  # fmt: skip
    for kind, known in others.items():
        cited |= {f"{kind} {name}": one.card.systems for name, one in known.items()}
    found: dict[int, tuple[str, ...]] = {}
    for name, numbers in cited.items():
        for number in numbers:
            found[number] = (*found.get(number, ()), name)
    for number, own in findings().items():
        found.setdefault(number, tuple(dict.fromkeys(f"run {one.tool}" for one in own)))
    return found


class Outcome(BaseModel):
    """What became of one claim, of the file that `make claims` writes.

    results: by host, the shares of dense attention's answers and the controls with their differences, see
    `claims/judge.py`; or why it was refused there.
    """

    model_config = ConfigDict(extra="forbid")

    row: int
    says: str
    method: str
    hosts: list[str]
    equal: str
    asked: str
    controls: dict[str, str]
    keeps: float
    at: float | None
    tried: list[str] = []
    leaves_out: str = ""
    state: str
    results: dict[str, dict[str, Any]]


class Outcomes(BaseModel):
    """The file that `make claims` writes."""

    model_config = ConfigDict(extra="forbid")

    machine: dict[str, str | int]
    versions: dict[str, str]
    hosts: dict[str, dict[str, Any]]
    claims: list[Outcome]


def outcomes() -> Outcomes | None:
    """What became of all claims; None where they were never run."""
    path = claims_file()
    return read_json(path, Outcomes, HeadwiseError, "make it again with `make claims`") if path.exists() else None


@cache
def claimed() -> dict[int, tuple[Outcome, ...]]:
    """By the number of a system, what became of its claims."""
    found: dict[int, tuple[Outcome, ...]] = {}
    for one in known.claims if (known := outcomes()) else ():
        found[one.row] = (*found.get(one.row, ()), one)
    return found


@cache
def tried() -> dict[int, list[tuple[str, str]]]:
    """By the number of a system, the names of its experiments and what these came to."""
    return trials()


def system(asked: str) -> System:
    """The system of a number or a name; HeadwiseError with the nearest name that there is."""
    by_name = {one.name.lower(): one for one in systems()} | {str(one.number): one for one in systems()}
    if asked.lower() not in by_name:
        known = [one.name for one in systems()]
        raise HeadwiseError(
            f"no system is called '{asked}', and numbers go from 0 to {len(known) - 1}; {did_you_mean(asked, known)}"
        )
    return by_name[asked.lower()]
