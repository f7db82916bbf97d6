"""A calibration: what was measured of one model, as one file, and how it gets into a plan."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from headwise.errors import HeadwiseError, PlanError
from headwise.files import copied, read_tensors, write_tensors
from headwise.geometry import Geometry, GeometryFacts
from headwise.plan import Plan, check_calibration, check_finite
from headwise.schema import Facts

FORMAT = "headwise-calibration-1"


@dataclass(frozen=True, eq=False)
class Calibration:
    """Tensors and figures of the model with fingerprint `model`, measured on data of the hash `data`.

    figures: by measure, JSON data with its settings and what was found. tensors: by name; `"<method>.<name>"`, which
    begin with [layers, KV heads] (`Geometry.by_head`), are shown to methods by a plan that holds them, other names are
    for people.
    """

    geometry: Geometry
    model: str
    data: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def adding(self, name: str, figures: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Calibration:
        """This calibration with the measure `name`."""
        return replace(
            self,
            figures={**self.figures, name: dict(figures)},
            tensors={**self.tensors, **tensors},
        )

    @property
    def digest(self) -> str:
        """A short hash of what methods are shown."""
        digest = hashlib.sha256(self.model.encode())
        for name, tensor in sorted(self.tensors.items()):
            if "." in name:
                digest.update(name.encode() + tensor.cpu().double().numpy().tobytes())
        return digest.hexdigest()[:16]

    def into(self, plan: Plan) -> Plan:
        """The plan with the tensors that methods are shown. PlanError when it is another model's."""
        for what, own, other in (("model", self.model, plan.model or self.model), ("", self.geometry, plan.geometry)):
            if own != other:
                raise PlanError(
                    f"the calibration was measured on {what} {own}, the plan is for {other}; run `headwise calibrate` "
                    "on the plan's model"
                )
        shown = {name: one for name, one in self.tensors.items() if "." in name}
        return replace(plan, calibration={**plan.calibration, **shown})

    def save(self, path: str | Path) -> None:
        """Write one file, whole or not at all."""
        facts = {
            "geometry": self.geometry.describe(),
            "model": self.model,
            "data": self.data,
            "figures": dict(self.figures),
        }
        write_tensors(Path(path), FORMAT, facts, dict(self.tensors))

    @classmethod
    def load(cls, path: str | Path, model: str = "") -> Calibration:
        """Read a calibration file; PlanError when it is missing, altered, of another kind or, given the fingerprint
        `model`, of another model."""
        facts, tensors = read_tensors(Path(path), FORMAT, CalibrationFacts, PlanError)
        if model and facts.model != model:
            raise PlanError(
                f"{path} was measured on model {facts.model}, this one is {model}; run `headwise calibrate` on this "
                "model with another --out"
            )
        try:
            geometry = facts.geometry.geometry()
            check_finite(tensors)
            for name, tensor in tensors.items():
                if "." in name:
                    check_calibration(name, tensor, geometry)
        except HeadwiseError as error:
            raise PlanError(f"{path} cannot be used: {error} (run `headwise calibrate` again)") from None
        return cls(geometry, facts.model, facts.data, facts.figures, copied(tensors))


class CalibrationFacts(Facts):
    """What a calibration file says beside its tensors."""

    geometry: GeometryFacts
    model: str
    data: str
    figures: dict[str, Any]
