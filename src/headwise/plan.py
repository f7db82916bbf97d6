"""A plan: which recipe every layer and KV head follows, with what was measured. One file, bound to one model."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from headwise.errors import HeadwiseError, PlanError, ShapeError, did_you_mean
from headwise.files import copied, read_tensors, write_tensors
from headwise.geometry import Geometry, GeometryFacts, layers_of
from headwise.recipe import Recipe
from headwise.registry import all_methods
from headwise.schema import Count, Facts

FORMAT = "headwise-plan-1"
LETTERS = re.compile(r"(\d*)([degn]?)(?:\+(\d+))?")  # a size of a calibration tensor, such as 4d+3


@dataclass(frozen=True)
class Plan:
    """Recipes by layer and KV head, calibration tensors and measured quality.

    recipes[layer][kv_head]. `model` is the fingerprint of the model the plan was made for ("" fits any model of this
    geometry). `spans` are token ranges [start, end) by true position that no eviction may touch. `quality` holds
    measured figures with what produced them. `calibration` holds tensors by name: `"<method>.<name>"` is shown to that
    method (see `calibrated`) and is [layers, KV heads, ...], with room for the most heads of a layer where layers
    differ (`Geometry.by_head`); other names are for people and programs that read plans.
    """

    geometry: Geometry
    recipes: tuple[tuple[Recipe, ...], ...]
    model: str = ""
    spans: tuple[tuple[int, int], ...] = ()
    quality: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        found = tuple(len(row) for row in self.recipes)
        if found != self.geometry.kv_heads:
            own = layers_of(self.geometry.kv_heads)
            raise PlanError(f"the plan has recipes for {layers_of(found)} heads, the model has {own} KV heads")
        for start, end in self.spans:
            if not 0 <= start < end:
                raise PlanError(f"protected span ({start}, {end}) is empty or negative; give 0 <= start < end")
        for name, tensor in self.calibration.items():
            if "." in name:
                check_calibration(name, tensor, self.geometry)
        for recipe in {recipe for row in self.recipes for recipe in row}:
            self._check_budget(recipe)
            _check_span(recipe)
        self._check_choosers()
        self._check_latents()
        self._check_steered()
        self._check_readers()

    def _check_budget(self, recipe: Recipe) -> None:
        """Refuse a number of tokens that is less than what is kept in any case; a share may be, on a short prompt."""
        tokens = recipe.evict.amount.tokens if recipe.evict is not None else None
        always = self.protected(recipe.evict, self.geometry.max_positions) if tokens is not None else 0
        if tokens is not None and tokens < always:
            raise PlanError(
                f"'{recipe}' is to keep {tokens} tokens per KV head, but {always} are always kept: "
                f"{recipe.evict.sinks} sinks, {recipe.evict.recent} recent ones and the plan's spans; give {always} "
                "tokens or more, or a smaller sinks= and recent="
            )

    def _check_latents(self) -> None:
        """Refuse methods that change keys or values alone where these are one vector."""
        for layer, (row, own) in enumerate(zip(self.recipes, self.geometry.layers, strict=True)):
            for part in row[0].parts if own.kind == "latent" else ():
                if (why := part.not_of_latents) is not None:
                    raise PlanError(f"layer {layer} has latent attention, but '{part.name}' {why}")

    def _check_steered(self) -> None:
        """Refuse to steer layers and heads that the model has not."""
        for part in {recipe.steer for row in self.recipes for recipe in row if recipe.steer is not None}:
            for layers, head in part.named():
                if layers[-1] >= len(self.geometry.layers):
                    most = len(self.geometry.layers) - 1
                    raise PlanError(f"'{part.name}' steers layer {layers[-1]}, but the model's are 0 to {most}")
                own = self.geometry.layers[layers[-1]].query_heads
                if head is not None and head >= own:
                    raise PlanError(
                        f"'{part.name}' steers head {head} of layer {layers[-1]}, whose query heads are 0 to {own - 1}"
                    )

    def _check_readers(self) -> None:
        """Refuse selections that note what a layer's queries chose where other layers read its tokens too."""
        for layer in sorted(self.geometry.lending):
            for part in {recipe.select for recipe in self.recipes[layer] if recipe.select is not None}:
                if "memory" in part.view_needs:
                    raise PlanError(
                        f"'{part.name}' notes what layer {layer} chose, but layers "
                        f"{sorted(self.geometry.readers(layer))} read its keys and values with queries of their own; "
                        "use a selection that notes nothing, such as quest"
                    )

    def _check_choosers(self) -> None:
        """Refuse heads that read what an earlier layer chooses where that layer chooses nothing for them."""
        for layer, (row, windows) in enumerate(zip(self.recipes, self.geometry.windows, strict=True)):
            for head, recipe in enumerate(row if windows is None else ()):
                source = layer if recipe.select is None else recipe.select.chooser(layer)
                if source != layer and (why := self._chooses_nothing(source, head, recipe)):
                    raise PlanError(
                        f"layer {layer}: '{recipe}' has head {head} read what layer {source} chose for the head "
                        f"of the same number, but layer {source} {why}; name another layer to choose, or give this "
                        "head another selection"
                    )

    def _chooses_nothing(self, layer: int, head: int, recipe: Recipe) -> str | None:
        """Why a layer chooses nothing for a head of this recipe in later layers; None where it does."""
        if self.geometry.windows[layer] is not None:
            return f"attends to a window of {self.geometry.windows[layer]} tokens and chooses nothing"
        if head >= len(self.recipes[layer]):
            return f"has {len(self.recipes[layer])} heads"
        return None if self.recipes[layer][head].select == recipe.select else "follows another selection there"

    @classmethod
    def uniform(cls, geometry: Geometry, recipe: Recipe | str, model: str = "") -> Plan:
        """The same recipe for every head."""
        recipe = Recipe.parse(recipe) if isinstance(recipe, str) else recipe
        return cls(geometry, tuple((recipe,) * heads for heads in geometry.kv_heads), model)

    def protecting(self, *spans: tuple[int, int]) -> Plan:
        """This plan with more protected token ranges."""
        return replace(self, spans=self.spans + spans)

    def calibrated(self, method: str, layer: int, heads: Sequence[int]) -> dict[str, torch.Tensor]:
        """The calibration tensors of a method for some heads of a layer, by name without the method's: [heads, ...]."""
        prefix = f"{method}."
        own = {name: tensor for name, tensor in self.calibration.items() if name.startswith(prefix)}
        return {name.removeprefix(prefix): tensor[layer, list(heads)] for name, tensor in own.items()}

    def groups(self, layer: int) -> list[tuple[Recipe, tuple[int, ...]]]:
        """The distinct recipes of a layer, as its heads' calibration has them, with the KV heads that follow each. Of a
        sliding layer's recipe only compression and steering count, as its window says what is kept and read."""
        sliding = self.geometry.layers[layer].window is not None
        groups: dict[Recipe, list[int]] = {}
        for head, recipe in enumerate(self.recipes[layer]):
            own = recipe.at(self.calibration, layer, head)
            own = own.within_window if sliding else own
            groups.setdefault(own, []).append(head)
        return [(recipe, tuple(heads)) for recipe, heads in groups.items()]

    @property
    def longest(self) -> int | None:
        """Most tokens that a sequence may have: the positions the model was trained on. None where every head of every
        layer that attends to everything reads at positions of its own, inside the trained ones."""
        rows = [row for row, window in zip(self.recipes, self.geometry.windows, strict=True) if window is None]
        placed = rows and all(recipe.repositions for row in rows for recipe in row)
        return None if placed else self.geometry.max_positions

    def count(self, recipe: Recipe, layer: int, seen: int) -> int:
        """Tokens that each head following `recipe` keeps on average of `seen`: where a share becomes a count.

        Never below the tokens the method always protects; `seen` when the recipe evicts nothing in this layer.
        """
        if recipe.evict is None:
            return seen
        return min(max(self.asked(recipe, layer, seen), self.protected(recipe.evict, seen), 1), seen)

    def asked(self, recipe: Recipe, layer: int, seen: int) -> int:
        """Tokens that the budget alone would keep of `seen`, whatever is protected."""
        evict = recipe.evict
        if evict is None or not evict.governs(layer):
            return seen
        tokens = evict.tokens_of(seen)
        kept = tokens / max(1, seen)
        governed = self.geometry.attending
        share = recipe.budget.layer_share(governed.index(layer), len(governed), kept) if recipe.budget else 1.0
        return round(tokens * share)

    def protected(self, evict: Any, seen: int) -> int:
        """Tokens of `seen` that no score may evict: the method's sinks and recent ones, and the plan's spans."""
        count, end = 0, 0
        for first, last in sorted([(0, evict.sinks), (seen - evict.recent, seen), *self.spans]):
            first, last = max(first, end), min(last, seen)
            count, end = count + max(0, last - first), max(end, last)
        return count

    def describe(self) -> dict[str, Any]:
        """The plan without tensors as plain JSON data."""
        return {
            "geometry": self.geometry.describe(),
            "recipes": [[str(recipe) for recipe in row] for row in self.recipes],
            "model": self.model,
            "spans": [list(span) for span in self.spans],
            "quality": self.quality,
        }

    @property
    def digest(self) -> str:
        """Short hash of what the plan does (not of its measured quality)."""
        facts = {k: v for k, v in self.describe().items() if k != "quality"}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for name, tensor in sorted(self.calibration.items()):
            if "." in name:
                digest.update(name.encode() + tensor.cpu().double().numpy().tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Write one file, whole or not at all."""
        write_tensors(Path(path), FORMAT, self.describe(), self.calibration)

    @property
    def doubt(self) -> str | None:
        """Why the plan should not be trusted yet, in one line with the fix; None once `headwise check` passed it."""
        found = self.quality.get("check")
        if found is None:
            return "was never checked against dense attention; run `headwise check` on it"
        if not found["passed"]:
            return f"failed `headwise check`: {'; '.join(found['failures'])}; give it more budget, or expect this loss"
        return None

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan file to use it: a line of warning goes to the log where `headwise check` has not passed it."""
        plan = cls.read(path)
        if plan.doubt is not None:
            logging.getLogger(__name__).warning("warning: plan %s %s", path, plan.doubt)
        return plan

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """Read a plan file; PlanError when it is missing, damaged, or has unknown keys."""
        facts, tensors = read_tensors(Path(path), FORMAT, PlanFacts, PlanError)
        try:
            geometry = facts.geometry.geometry()
            check_finite(tensors)
            known = {text: Recipe.parse(text) for text in {text for row in facts.recipes for text in row}}
            recipes = tuple(tuple(known[text] for text in row) for row in facts.recipes)
            quality = facts.quality.model_dump(exclude_unset=True)
            return cls(geometry, recipes, facts.model, facts.spans, quality, copied(tensors))
        except HeadwiseError as error:
            raise PlanError(f"{path} cannot be used: {error} (make it again with this version of headwise)") from None


class CheckFacts(BaseModel):
    """What `headwise check` found, as far as a plan's reader asks."""

    model_config = ConfigDict(strict=True, extra="allow")

    passed: bool
    failures: list[str]


class QualityFacts(BaseModel):
    """Measured figures: any, of which one has a form."""

    model_config = ConfigDict(strict=True, extra="allow")

    check: CheckFacts = Field(default_factory=lambda: CheckFacts(passed=False, failures=[]))


class PlanFacts(Facts):
    """What a plan file says beside its tensors, see `Plan.describe`."""

    geometry: GeometryFacts
    recipes: tuple[tuple[str, ...], ...]
    model: str
    spans: tuple[tuple[Count, Count], ...]
    quality: QualityFacts


def check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse calibration tensors shown to methods that have numbers which no measure gives."""
    for name, tensor in tensors.items():
        if "." in name and not bool(tensor.isfinite().all()):
            raise PlanError(f"calibration '{name}' ({tensor.dtype}) is not finite; calibrate the model again")


def _check_span(recipe: Recipe) -> None:
    """Refuse an eviction beside a compression that writes a token once for many heads."""
    if recipe.evict is not None and recipe.compress is not None and recipe.compress.span is not None:
        raise PlanError(
            f"'{recipe.compress.name}' writes a token once for all heads of its layers, but an eviction lets each head "
            "keep tokens of its own; leave one of the two out, or compress by low_rank"
        )


def check_calibration(name: str, tensor: torch.Tensor, geometry: Geometry) -> None:
    """Refuse a tensor that its method could not use: its sizes are those that the method declares."""
    method, _, own = name.partition(".")
    sizes: list[int | None] = [*geometry.by_head, *tensor.shape[2:]]
    cls: Any = all_methods().get(method)
    if cls is not None:
        if own not in cls.calibrates:
            known = did_you_mean(own, cls.calibrates) if cls.calibrates else "it reads none of its own"
            raise PlanError(f"'{method}' has no calibration '{own}'; {known}")
        try:
            sizes[2:] = _sizes(cls.calibrates[own].sizes, geometry, tensor.dim() - 2)
        except ShapeError as error:
            raise PlanError(f"calibration '{name}': {error}") from None
    if len(sizes) != tensor.dim() or any(a not in (None, b) for a, b in zip(sizes, tensor.shape, strict=True)):
        told = ", ".join("any" if one is None else str(one) for one in sizes)
        raise PlanError(
            f"calibration '{name}' is {list(tensor.shape)}, but for this model it is [{told}], beginning with layers "
            "and the most KV heads that one has; calibrate this model"
        )


def _sizes(letters: str, geometry: Geometry, count: int) -> list[int | None]:
    """The sizes after [layers, KV heads] that a `CalibrationTensor` names, for a tensor that has `count` of them."""
    words = letters.split()
    if words and words[-1].endswith("?") and count < len(words):
        words.pop()
    found: list[int | None] = []
    for times, letter, more in (LETTERS.findall(word)[0] for word in words):
        width = geometry.size(letter) if letter in ("d", "e", "g") else 1
        found.append(None if letter == "n" else int(times or 1) * width + int(more or 0))
    return found
