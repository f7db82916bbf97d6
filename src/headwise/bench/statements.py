"""What papers state of layers, judged by a comparison of these: each with the limit that it has to clear.

A statement stands in the file of a comparison (`[[statements]]`), beside the sides and before anything is trained; one
that does not says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from headwise.bench.judging.intervals import Interval
from headwise.errors import HeadwiseError
from headwise.experiments import interval
from headwise.findings import Finding, Part, part
from headwise.schema import Count, Facts

LATE = "a run that was not known when the limits were set"


class Stated(Facts):
    """One thing that is measured of a side, and the limit that its interval over seeds has to clear.

    control: a side in its place, whose figure is taken from it seed by seed. reference: the same of a side that the
    paper holds it against, and that it need not be better than. task: which of the file's, counted from 0. at: tokens;
    0 is the longest asked. since: tokens at which the side's own right answers are taken from those `at`; 0 is none.
    """

    says: str
    side: str
    control: str = ""
    reference: str = ""
    of: Literal["accuracy", "loss", "read", "parameters"] = "accuracy"
    task: Count = 0
    at: Count = 0
    since: Count = 0
    above: float | None = None
    below: float | None = None

    @property
    def names(self) -> list[str]:
        """The sides that it is about."""
        return [name for name in (self.side, self.control, self.reference) if name]

    def wrong(self, lengths: Sequence[int], sides: Sequence[str]) -> str:
        """Why it cannot be judged in a task of these; "" where it can."""
        if (self.above is None) == (self.below is None):
            return "has no limit, or two; give one of above= and below="
        if self.control and self.reference:
            return "has a control and a reference; give one of them, and another part the other"
        if missing := [name for name in self.names if name not in sides]:
            return f"is about '{missing[0]}', which stands not in task {self.task}"
        if wrong := {self.at, self.since} - {0, *lengths}:
            return f"is asked at {max(wrong)} tokens; task {self.task} asks at {', '.join(map(str, lengths))}"
        return ""


class Statement(Facts):
    """What the row of a paper states, in parts. leaves_out: what of the row no part of it says. late: whether it was
    written when figures were known, which is told, and shows something in part at most."""

    row: Count
    says: str
    parts: list[Stated]
    leaves_out: str = ""
    late: bool = False

    def check(self, tasks: Sequence[Any], where: str) -> None:
        """HeadwiseError where it is about what the file does not train or ask, or could not fail."""
        told = f"{where}: the statement of row {self.row}"
        if not any(one.control for one in self.parts):
            raise HeadwiseError(f"{told} has nothing in the side's place, so that it cannot fail; give a part control=")
        for one in self.parts:
            if one.task >= len(tasks):
                raise HeadwiseError(f"{told}: '{one.says}' has task={one.task} of {len(tasks)}; the first is 0")
            if wrong := one.wrong(tasks[one.task].lengths, tasks[one.task].sides):
                raise HeadwiseError(f"{told}: '{one.says}' {wrong}")


def over_seeds(values: Sequence[float]) -> Interval:
    """The interval of a figure of several seeds."""
    return Interval(**interval(values), count=len(values), kind="Student 95 %")


def judged(statements: Sequence[Statement], result: Mapping[str, Any]) -> list[Finding]:
    """What a comparison's result shows of those statements whose sides it has."""
    tasks = [task["sides"] for task in result["tasks"]]
    there = [one for one in statements if all(name in tasks[part.task] for part in one.parts for name in part.names)]
    return [_finding(one, result) for one in there]


def _finding(one: Statement, result: Mapping[str, Any]) -> Finding:
    host, asked = result["host"], {result["tasks"][stated.task]["task"]: None for stated in one.parts}
    return Finding(
        row=one.row, says=one.says, command=result["command"], date=result["date"],
        leaves_out="; ".join(filter(None, (one.leaves_out, LATE * one.late))),
        host=f"{host['depth']} layers of {host['width']} channels and {host['heads']} heads, on {', '.join(asked)}; "
        f"{len(result['seeds'])} seeds",
        machine=f"{result['machine']['processor']}, {result['machine']['cores']} cores",
        parts=tuple(_part(stated, result["tasks"][stated.task]) for stated in one.parts),
    )  # fmt: skip


def _part(stated: Stated, task: Mapping[str, Any]) -> Part:
    values = _figures(stated, task, stated.side)
    if other := stated.control or stated.reference:
        values = [own - its for own, its in zip(values, _figures(stated, task, other), strict=True)]
    limits = {"above": stated.above, "below": stated.below}
    given = {name: limit for name, limit in limits.items() if limit is not None}
    return part(stated.says, over_seeds(values), stated.control, **given)


def _figures(stated: Stated, task: Mapping[str, Any], side: str) -> list[float]:
    """What was measured of a side, a number a seed."""
    told = task["sides"][side]
    if stated.of == "parameters":
        return [float(told["parameters"])] * len(told["seeds"])
    if stated.of != "accuracy":
        return list(told["by_seed"][stated.of])
    at = str(stated.at or task["lengths"][-1])
    return [seed[at] - (seed[str(stated.since)] if stated.since else 0.0) for seed in told["seeds"]]
