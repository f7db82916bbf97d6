"""The one pass that makes a calibration of the measures that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from headwise.calibrate.calibration import Calibration
from headwise.errors import PlanError
from headwise.observe import MEASURES, Material, Measure


def measures() -> dict[str, Measure]:
    """All measures by name, those that cost least first."""
    return dict(sorted(MEASURES.all().items(), key=lambda one: one[1].cost))


def check_measures(names: Iterable[str]) -> list[str]:
    """The names, when all are measures; RecipeError with the nearest one otherwise."""
    names = list(names)
    for name in names:
        MEASURES.get(name)
    return names


def calibrate(
    material: Material,
    names: Iterable[str] | None = None,
    path: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    each: Callable[[str], None] = lambda name: None,
) -> Calibration:
    """A calibration with these measures. With a `path` each is written there as soon as it is found, and what the file
    holds already is not measured again; a file of another model or other data is refused. each: told every
    measure that is done."""
    known = measures()
    names = list(known) if names is None else check_measures(names)
    for name in names:
        known[name].check(material)
    subject, data = material.subject, material.data
    found = Calibration(subject.geometry, subject.fingerprint, data)
    if path is not None and path.exists():
        found = Calibration.load(path, subject.fingerprint)
        if found.data != data:
            raise PlanError(
                f"{path} was measured on data {found.data}, this is {data}; give the documents and settings it was "
                "made with, or another --out"
            )
    missing = [name for name in known if name in names and name not in found.figures]
    total, before = sum(known[name].cost for name in missing), 0
    for name in missing:
        measure = known[name]
        progress(measure.about, before, total)
        found = found.adding(name, *measure.run(material, partial(_weighted, progress, measure, before, total)))
        if path is not None:
            found.save(path)
        each(name)
        before += measure.cost
    return found


def _weighted(
    progress: Callable[[str, int, int], None], measure: Measure, before: int, total: int, done: int, steps: int
) -> None:
    progress(measure.about, before + measure.cost * done // max(1, steps), total)
