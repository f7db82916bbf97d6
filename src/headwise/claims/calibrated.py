"""What is measured once of a host's model, on documents of its own that no claim asks about."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from headwise.bench.protocol import digest
from headwise.calibrate.calibrate import calibrate
from headwise.calibrate.calibration import Calibration
from headwise.calibrate.subject import ModelSubject
from headwise.claims.hosts import Host, Stage
from headwise.observe import GateTraining, Material, Recall
from headwise.recipe import Recipe
from headwise.watch import Watch

DOCUMENTS = 4  # to read, and to recall from
LADDER = (0.25, 0.5, 1.0)  # of a document's length, for spans


def measures_of(recipe: Recipe) -> frozenset[str]:
    """The measures that a recipe's methods are told by."""
    own = (part for part in recipe.parts if part.own_card.calibrated)
    return frozenset(one.measure for part in own for one in part.calibrates.values())


def calibration_of(
    host: Host, stage: Callable[[], Stage], names: Collection[str], folder: Path, watch: Watch
) -> Calibration:
    """A calibration of a host's model with these measures; what a file of `folder` holds is not measured again."""
    path = folder / f"{host.name}-{digest(host.facts())}.calibration"
    if path.exists() and set(names) <= set((found := Calibration.load(path)).figures):
        return found
    loaded = stage()

    def recalls(share: float, count: int) -> list[Recall]:
        asked = (loaded.document(-1 - number, share) for number in range(count))  # claims ask about 0 and up
        return [Recall(one.ids, one.asks) for one in asked]

    asked = recalls(1.0, DOCUMENTS)
    tokens = asked[0].ids.shape[1]
    material = Material(
        ModelSubject(loaded.model), [one.ids for one in asked], asked,
        [one for share in LADDER for one in recalls(share, 1)],
        training=GateTraining(sinks=max(4, tokens // 64), recent=tokens // 16),
    )  # fmt: skip
    return calibrate(material, names, path, watch)
