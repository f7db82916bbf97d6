"""The sentence that says how attention is made cheaper: `prefill | evict | budget | compress | select | steer`.

`Recipe.parse("snapkv(0.2) | ada | int8 | quest(1024)")`. Any part may be missing; the empty recipe is dense attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from headwise.errors import RecipeError, shorten, shown
from headwise.registry import PARTS, build
from headwise.sentence import phrase, read_calls

if TYPE_CHECKING:
    import torch

EXAMPLE = 'write it like "snapkv(0.2) | int8"'


@dataclass(frozen=True)
class Recipe:
    """One part of each kind or None. Parts are the frozen method objects of `headwise.methods`."""

    prefill: Any = None
    evict: Any = None
    budget: Any = None
    compress: Any = None
    select: Any = None
    steer: Any = None

    def __post_init__(self) -> None:
        for name in PARTS:
            part = getattr(self, name)
            if part is not None and (not is_dataclass(part) or getattr(part, "part", name) != name):
                raise RecipeError(f"{shown(part)} is no {name} method; {EXAMPLE}")
        if self.budget is not None and self.evict is None:
            raise RecipeError(
                f"'{self.budget.name}' shares out an eviction budget, but nothing is evicted; add a part such as "
                "snapkv(0.2)"
            )
        if self.repositions:
            self._check_positions()
        if self.steer is not None:
            self._check_steering()

    def _check_steering(self) -> None:
        for part in (self.prefill, self.select):
            if part is not None and part.weighs:
                raise RecipeError(
                    f"what '{part.name}' reads counts for more or less than one, which '{self.steer.name}' would weigh "
                    "anew; leave one of them out"
                )
        if self.repositions:
            raise RecipeError(
                f"'{self.steer.name}' steers what lies at its own position, and '{self.select.name}' moves what it "
                f"reads; leave one of them out, or give {self.select.name} positions='true'"
            )

    def _check_positions(self) -> None:
        if self.prefill is not None:
            raise RecipeError(
                f"'{self.prefill.name}' and '{self.select.name}' with positions of its own both say how a prompt is "
                f"read; leave one of them out, or give {self.select.name} positions='true'"
            )
        if self.evict is not None and self.evict.rehearsal is not None:
            raise RecipeError(
                f"'{self.evict.name}' has the model read the prompt again at the positions after it, which "
                f"'{self.select.name}' would change; leave one of them out, or give {self.select.name} "
                "positions='true'"
            )
        if self.evict is not None and self.evict.leaves_mean:
            raise RecipeError(
                f"the mean key that '{self.evict.name}' leaves has no position that '{self.select.name}' could change; "
                f"use another eviction, or give {self.select.name} positions='true'"
            )

    @classmethod
    def parse(cls, sentence: str) -> Recipe:
        """Read a sentence; `""` and `"dense"` are dense attention. Raises RecipeError naming the word and the fix."""
        if not isinstance(sentence, str):
            raise RecipeError(f"{shown(sentence)} is no recipe; {EXAMPLE}")
        if sentence.strip() in ("", "dense"):
            return cls()
        parts: dict[str, Any] = {}
        for call in read_calls(sentence, EXAMPLE):
            part = build(call)
            if part.part in parts:
                raise RecipeError(
                    f"'{part.name}' and '{parts[part.part].name}' are both {part.part} methods in "
                    f"'{shorten(sentence)}'; a recipe has at most one of each kind"
                )
            parts[part.part] = part
        return cls(**parts)

    @property
    def parts(self) -> tuple[Any, ...]:
        """The parts that are present, in the order of the sentence."""
        return tuple(part for name in PARTS if (part := getattr(self, name)) is not None)

    @property
    def repositions(self) -> bool:
        """Whether what is read, of prompts too, is placed at positions of its own."""
        return self.select is not None and self.select.repositions

    @property
    def within_window(self) -> Recipe:
        """What of the recipe a sliding layer follows: its steering, and its compression unless tokens of several
        layers lie together, as the windows of each pass on by themselves."""
        alone = self.compress is not None and self.compress.span is None
        return Recipe(compress=self.compress if alone else None, steer=self.steer)

    def at(self, calibration: Mapping[str, torch.Tensor], layer: int, head: int) -> Recipe:
        """What the recipe means for one KV head, where a part tells heads apart by the plan's calibration tensors."""
        told = (calibration, layer, head)
        prefill = self.prefill.at(*told) if self.prefill is not None else None
        evict = self.evict.at(*told) if self.evict is not None else None
        steer = self.steer.at(*told) if self.steer is not None else None
        budget = self.budget if evict is not None else None
        return replace(self, prefill=prefill, evict=evict, budget=budget, steer=steer)

    def __str__(self) -> str:
        return " | ".join(phrase(part) for part in self.parts) or "dense"
