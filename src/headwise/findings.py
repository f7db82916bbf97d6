"""What a run found out about published systems, in a form that can fail: measured intervals and the limits to clear.

A command that measures rows of the list of systems writes a `Finding` for each of them, beside its figures, into the
JSON of its run. States are computed here and nowhere typed; `python -m headwise.report.findings` collects what all runs
found into the file that `headwise systems` reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from headwise.assets import findings_file
from headwise.errors import HeadwiseError
from headwise.files import read_json

ENOUGH = 64  # questions, from which on what is asked in a run tells methods apart; fewer are judged by nobody
State = Literal["shown", "shown in part", "exact", "negative", "open"]


class Interval(Protocol):
    """A mean with the ends of its 95 % interval over `count` questions, texts or seeds."""

    @property
    def mean(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def count(self) -> int: ...


class Measured(BaseModel):
    """An interval as it is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    mean: float
    low: float
    high: float
    count: int = Field(ge=3)

    @model_validator(mode="after")
    def _ordered(self) -> Measured:
        if not self.low <= self.mean <= self.high:
            raise ValueError(f"the mean {self.mean} lies outside of its interval from {self.low} to {self.high}")
        return self


class Part(BaseModel):
    """One thing that a finding rests on: what was measured, and the limit that its whole interval has to clear.

    control: what stands in the method's place, such as "as many random heads", where the figure is a paired difference
    to it; "" where the figure is the method's own, held against what the paper states.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    says: str
    found: Measured
    above: float | None = None
    below: float | None = None
    control: str = ""

    @model_validator(mode="after")
    def _one_limit(self) -> Part:
        if (self.above is None) == (self.below is None):
            raise ValueError(f"'{self.says}' needs one limit, above or below, and has {self.above} and {self.below}")
        return self

    @property
    def state(self) -> State:
        """shown: the interval clears the limit. negative: it lies beyond it. open: the limit lies within it."""
        if self.above is not None:
            near, far, limit = self.found.low, self.found.high, self.above
        else:
            assert self.below is not None
            near, far, limit = -self.found.high, -self.found.low, -self.below
        return "shown" if near > limit else "negative" if far <= limit else "open"


class Finding(BaseModel):
    """What one run shows of one system. row: its number in the list. says: the statement, a sentence. host: the model,
    with what was asked of it. command, machine, date: how, where and when it was measured. leaves_out: what of the row
    it does not test; a finding that leaves something out is shown in part at most. equations: whether it tests alone
    that something computes what its paper's equations say, and nothing of what that is good for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    row: int = Field(ge=0)
    says: str
    host: str
    command: str
    machine: str
    date: str
    parts: tuple[Part, ...]
    leaves_out: str = ""
    equations: bool = False

    @model_validator(mode="after")
    def _can_fail(self) -> Finding:
        if not any(part.control for part in self.parts):
            raise ValueError(f"the finding of row {self.row} names no control, so that it cannot fail; measure one")
        return self

    @property
    def tool(self) -> str:
        """The script or the command of headwise that made it, without its arguments."""
        words = self.command.split()
        return words[1] if words[0] == "python" else " ".join(words[:2])

    @property
    def state(self) -> State:
        """shown: all parts are. shown in part: all controls are beaten, and of the statement something is shown and
        nothing beyond its limit, or all of it where the finding leaves something out. exact: all parts are, and
        equations are all that it tests. negative: a part lies beyond its limit, and of the statement nothing is shown,
        or a control is not beaten. open: anything else."""
        controls = {part.state for part in self.parts if part.control}
        stated = {part.state for part in self.parts if not part.control} or controls
        if self.equations and controls | stated == {"shown"}:
            return "exact"
        if "negative" in controls | stated:
            return "open" if controls == {"shown"} and "shown" in stated else "negative"
        if controls == {"shown"} and "shown" in stated:
            return "shown" if stated == {"shown"} and not self.leaves_out else "shown in part"
        return "open"


def part(says: str, found: Interval, control: str = "", **limit: float) -> Part:
    """A part of an interval, however it was found; `above=` or `below=` is the limit."""
    kept = {name: _short(getattr(found, name)) for name in ("mean", "low", "high")}
    return Part(says=says, found=Measured(**kept, count=found.count), control=control, **limit)


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def as_data(findings: list[Finding]) -> list[dict[str, Any]]:
    """As JSON data for a run's file, under the name "findings"."""
    return [one.model_dump(exclude_defaults=True) for one in findings]


class Findings(BaseModel):
    """The file of all findings."""

    model_config = ConfigDict(extra="forbid")

    findings: tuple[Finding, ...]


@cache
def findings() -> Mapping[int, tuple[Finding, ...]]:
    """By the number of a system, what runs found out about it."""
    path = findings_file()
    if not path.exists():
        return {}
    fix = "make it again with `python -m headwise.report.findings docs/data`"
    found: dict[int, tuple[Finding, ...]] = {}
    for one in read_json(path, Findings, HeadwiseError, fix).findings:
        found[one.row] = (*found.get(one.row, ()), one)
    return found
