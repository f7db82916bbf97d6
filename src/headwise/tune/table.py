"""The table that a plan is chosen from: every candidate's cost for every head, kept on disk document by document."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from headwise.calibrate.answers import dense_answers
from headwise.calibrate.sensitivity import harm, traces
from headwise.calibrate.shelf import shelved
from headwise.errors import HeadwiseError, PlanError
from headwise.files import read_tensors, write_tensors
from headwise.geometry import Geometry
from headwise.observe import Recall
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.schema import Facts
from headwise.seams.transformers.cache import PreTrainedModel, attach
from headwise.watch import Watch

FORMAT = "headwise-table-3"


@dataclass(frozen=True)
class Table:
    """losses: nats by answer token that a head alone is estimated to cost, float32 [recipes, layers, kv_heads]."""

    menu: tuple[Recipe, ...]
    losses: torch.Tensor


def measure(
    model: PreTrainedModel,
    recalls: Sequence[Recall],
    menu: Sequence[Recipe],
    folder: Path,
    watch: Watch,
    seed: int = 0,
    calibration: dict[str, torch.Tensor] | None = None,
) -> Table:
    """The mean over documents of what every candidate costs every head.

    Each finished document is written into `folder`; called again after a kill, only the others are measured.
    calibration: tensors by name that candidates are shown, as a plan holds them.
    """
    if not recalls or not all(recall.asked for recall in recalls):
        raise HeadwiseError("there is nothing to tune on; give documents with at least one question each")
    check_menu(menu)
    plans = _plans(model, menu, calibration)
    total, found = len(recalls) * len(menu), []
    for place, recall in enumerate(recalls):
        path = folder / f"{_key(model, recall, plans, seed)}.table"
        if path.is_file():
            found.append(read_table(path, menu, plans[0].geometry))
            continue
        answers = dense_answers(model, recall, seed, calibration)
        asked = list(traces(answers))
        losses: list[torch.Tensor] = []
        for recipe in menu:
            watch("measuring what each head can do without", place * len(menu) + len(losses), total)
            losses.append(harm(answers, asked, recipe))
        found.append(torch.stack(losses))
        write_table(path, Table(tuple(menu), found[-1]))
    watch("measuring what each head can do without", total, total)
    return Table(tuple(menu), torch.stack(found).mean(0))


class TableFacts(Facts):
    """What the file of a document says beside its losses."""

    menu: tuple[str, ...]


def write_table(path: Path, table: Table) -> None:
    """Write a table for `read_table`."""
    write_tensors(path, FORMAT, {"menu": [str(recipe) for recipe in table.menu]}, {"losses": table.losses})


def read_table(path: Path, menu: Sequence[Recipe], geometry: Geometry) -> torch.Tensor:
    """The losses [recipes, layers, kv_heads] of a table's file."""
    facts, tensors = read_tensors(path, FORMAT, TableFacts, HeadwiseError)
    losses, shape = tensors.get("losses"), [len(menu), *geometry.by_head]
    if facts.menu != tuple(str(recipe) for recipe in menu) or losses is None or list(losses.shape) != shape:
        raise HeadwiseError(
            f"{path} is no table of these {len(menu)} candidates for this model; delete it, to have it measured anew"
        )
    if losses.dtype != torch.float32 or not bool(losses.isfinite().all()):
        raise HeadwiseError(f"{path}: its losses are {losses.dtype} or not finite; delete it, to have it measured anew")
    return losses.clone()


def forget_tables(
    model: PreTrainedModel,
    recalls: Sequence[Recall],
    menu: Sequence[Recipe],
    folder: Path,
    seed: int = 0,
    calibration: dict[str, torch.Tensor] | None = None,
) -> None:
    """Delete what `measure` keeps of these documents, so that it measures all of them anew."""
    plans = _plans(model, menu, calibration)
    for recall in recalls:
        (folder / f"{_key(model, recall, plans, seed)}.table").unlink(missing_ok=True)
    prices_file(model, recalls, menu, folder, seed).unlink(missing_ok=True)


def prices_file(
    model: PreTrainedModel, recalls: Sequence[Recall], menu: Sequence[Recipe], folder: Path, seed: int = 0
) -> Path:
    """Where prices that were measured on these documents are kept, for other budgets as well."""
    plans = _plans(model, menu, None)
    keys = [_key(model, recall, plans, seed) for recall in recalls]
    return folder / f"{hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:16]}.prices"


def _plans(model: PreTrainedModel, menu: Sequence[Recipe], calibration: dict[str, torch.Tensor] | None) -> list[Plan]:
    """Every candidate for all heads."""
    geometry = attach(model).geometry
    return [replace(Plan.uniform(geometry, recipe), calibration=calibration or {}) for recipe in menu]


def check_menu(menu: Sequence[Recipe]) -> None:
    """Refuse candidates that a table of single heads cannot judge."""
    for recipe in menu:
        if not shelved(recipe) or recipe.budget is not None:
            raise PlanError(
                f"'{recipe}' cannot be a candidate: prefill patterns, budget parts, selections and codecs of several "
                "layers are no matter of what one head's cache holds; give evict and compress parts only"
            )
    if not menu or len(set(menu)) != len(menu):
        raise PlanError(f"{len(menu)} candidates, {len(set(menu))} of them different; give each once, at least one")


def _key(model: PreTrainedModel, recall: Recall, plans: Sequence[Plan], seed: int) -> str:
    """Name of what is measured: equal where model, document, questions, candidates, calibration and seed are, and the
    way of measuring."""
    asked = [[question.tolist(), answer.tolist()] for question, answer in recall.asked]
    facts = [
        FORMAT,
        attach(model).fingerprint,
        str(model.dtype),
        recall.ids.tolist(),
        asked,
        [plan.digest for plan in plans],
        seed,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
