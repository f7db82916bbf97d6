"""What is measured once of a model, one file each or a few that belong together: `@measure("name", cost=...)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from headwise.calibrate.material import Material
from headwise.rooms import Room
from headwise.seams.transformers.drive import Progress

Found = tuple[dict[str, Any], dict[str, torch.Tensor]]  # figures and tensors
Run = Callable[[Material, Progress], Found]


@dataclass(frozen=True)
class Measure:
    """about: in a line, what is found. run: measures it, telling its progress. cost: seconds of a model of 0.5B
    shape (docs/tune.md), which tell how far a calibration is."""

    about: str
    run: Run
    cost: int


MEASURES: Room[Measure] = Room("measure", "headwise.calibrate.measures")


def measure(name: str, *, cost: int) -> Callable[[Run], Run]:
    """Function decorator: makes a measure known by its name; the function's docstring says in a line what is found."""

    def add(run: Run) -> Run:
        MEASURES.add(name, Measure((run.__doc__ or "").strip().rstrip("."), run, cost))
        return run

    return add
