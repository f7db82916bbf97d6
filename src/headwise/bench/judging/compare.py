"""Two results side by side: refused where they were not produced alike, else row by row, ask by ask."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from headwise.bench.judging.intervals import of_strata
from headwise.bench.protocol import FORMAT, check_alike
from headwise.errors import HeadwiseError
from headwise.files import read_json

Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    """A part of a result: what is compared is checked, the rest is kept as it is."""

    model_config = ConfigDict(strict=True, extra="allow")


class _Sample(_Part):
    item: int
    ask: int
    score: Finite


class _Task(_Part):
    samples: list[_Sample]


class _Overall(_Part):
    mean: Finite


class _Row(_Part):
    name: str
    tasks: dict[str, _Task] = Field(default_factory=dict)
    overall: _Overall | None = None
    byte_steps_of_dense: Finite | None = None

    @model_validator(mode="after")
    def _measured(self) -> _Row:
        if self.tasks and (self.overall is None or self.byte_steps_of_dense is None):
            raise ValueError(f"the row '{self.name}' has tasks but no overall score or byte_steps_of_dense")
        return self


class _Protocol(_Part):
    format: str
    hashes: dict[str, str]


class ResultFacts(_Part):
    """A result of `headwise bench --json` or `headwise sweep`, as far as a comparison reads it."""

    protocol: _Protocol
    rows: list[_Row]


def load_result(path: Path) -> dict[str, Any]:
    """A result that `headwise bench --json` or `headwise sweep` wrote."""
    again = "make it again with `headwise bench --json` or `headwise sweep`"
    result = read_json(path, ResultFacts, HeadwiseError, again).model_dump(exclude_unset=True)
    if result["protocol"]["format"] != FORMAT:
        raise HeadwiseError(
            f"{path} is of the kind {result['protocol']['format']}, this version reads {FORMAT}; {again}"
        )
    return result


def compared(one: dict[str, Any], other: dict[str, Any], allow: Collection[str] = ()) -> dict[str, Any]:
    """The second result less the first, for every row of both; HeadwiseError names hashes that differ and may not.

    Where data and tasks are the same, asks are paired; a row in one result only is listed, not compared.
    """
    allowed = check_alike(one["protocol"], other["protocol"], allow)
    mine = {row["name"]: row for row in one["rows"]}
    theirs = {row["name"]: row for row in other["rows"]}
    both = [name for name in mine if name in theirs and "tasks" in mine[name] and "tasks" in theirs[name]]
    return {
        "kind": "comparison",
        "unlike": allowed,
        "rows": [_difference(mine[name], theirs[name]) for name in both],
        "only_first": sorted(mine.keys() - set(both)),
        "only_second": sorted(theirs.keys() - set(both)),
    }


def _difference(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    strata = []
    for place in sorted(mine["tasks"].keys() & theirs["tasks"].keys()):
        first, second = (_by_ask(row["tasks"][place]) for row in (mine, theirs))
        strata.append([second[ask] - first[ask] for ask in sorted(first.keys() & second.keys())])
    return {
        "name": mine["name"],
        "first": mine["overall"]["mean"],
        "second": theirs["overall"]["mean"],
        "difference": asdict(of_strata(strata)),
        "byte_steps_of_dense": [mine["byte_steps_of_dense"], theirs["byte_steps_of_dense"]],
    }


def _by_ask(task: dict[str, Any]) -> dict[tuple[int, int], float]:
    return {(sample["item"], sample["ask"]): sample["score"] for sample in task["samples"]}
