"""What is measured once of a model: `@measure("name", cost=...)`, where the method that reads it stands, or shared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from headwise.observe.material import Material
from headwise.registry import METHODS
from headwise.rooms import Room

Progress = Callable[[int, int], None]  # steps done, steps in all
Found = tuple[dict[str, Any], dict[str, torch.Tensor]]  # figures and tensors
Run = Callable[[Material, Progress], Found]
Check = Callable[[Material], None]


@dataclass(frozen=True)
class Measure:
    """about: in a line, what is found. run: measures it, telling its progress. cost: seconds of a model of 0.5B
    shape (docs/tune.md), which tell how far a calibration is. check: refuses, before anything is measured, material
    that it cannot be measured on."""

    about: str
    run: Run
    cost: int
    check: Check


# In the files of methods, each beside the method it is for; and in a folder of those that serve several, or people.
FOLDERS = [folder for room in METHODS.values() for folder in room.packages]
MEASURES: Room[Measure] = Room("measure", *FOLDERS, "headwise.calibrate.measures", deep=True)


def measure(name: str, *, cost: int, check: Check = lambda material: None) -> Callable[[Run], Run]:
    """Function decorator: makes a measure known by its name; the function's docstring says in a line what is found."""

    def add(run: Run) -> Run:
        MEASURES.add(name, Measure((run.__doc__ or "").strip().rstrip("."), run, cost, check))
        return run

    return add
