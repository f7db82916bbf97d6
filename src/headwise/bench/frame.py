"""What bytes are counted for before a prompt is read: the model, the prompt's length, the element type."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.cache.pages import PAGE
from headwise.calibrate.calibration import Calibration
from headwise.cost.prediction import fitted, predicted_bytes
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import Seam, as_plan


@dataclass(frozen=True)
class Frame:
    """What bytes are counted for: the attached model, the prompt's tokens, the cache's element type.

    calibration: what was measured of the model, for recipes whose methods ask for that.
    """

    seam: Seam
    tokens: int
    dtype: torch.dtype
    calibration: Calibration | None = None

    @property
    def dense_bytes(self) -> int:
        """Keys and values of the whole prompt, and states."""
        return self.seam.geometry.dense_bytes(self.tokens, self.dtype)

    def bytes_of(self, plan: Plan) -> int:
        """What `plan` will hold after the prompt."""
        return predicted_bytes(plan, self.tokens, self.dtype)

    def plan(self, recipe: Recipe) -> Plan:
        """The recipe for every head, with the calibration where a part of it uses one."""
        plan = as_plan(self.seam, recipe)
        if self.calibration is not None and any(part.own_card.calibrated for part in recipe.parts):
            return self.calibration.into(plan)
        return plan

    def fitted(self, sentence: str, target: int) -> Recipe:
        """The recipe with the largest eviction budget that stays within `target` bytes."""
        return fitted(self.plan(Recipe.parse(sentence)), target, self.tokens, self.dtype)

    def fitted_like(self, sentence: str, plan: Plan) -> Recipe:
        """The recipe with the eviction budget whose bytes are nearest to those of `plan`; memory comes in pages."""
        half_page = self.seam.geometry.dense_bytes(PAGE // 2, self.dtype) - self.seam.geometry.state_bytes(self.dtype)
        return self.fitted(sentence, self.bytes_of(plan) + half_page)
