"""Taking lenses of a scene: those of attention share one forward of each text, the others run in their own way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from headwise.errors import HeadwiseError
from headwise.lens.look import looked_at
from headwise.lens.scene import Scene, Text
from headwise.lenses import LENSES, AttentionLens, ModelLens
from headwise.observe import Subject

Watch = Callable[[str, int, int], None]  # what is being done, steps done, steps in all


def silent(what: str, done: int, total: int) -> None:
    """Watches nothing."""


@dataclass(frozen=True, eq=False)
class Measured:
    """figures: by lens, float32 [layers, query heads], not a number for heads that a layer does not have. refused: why
    the model or the scene does not allow a lens."""

    figures: dict[str, torch.Tensor]
    refused: dict[str, str]


def usual() -> list[str]:
    """The lenses that are taken where none is named: those that take no minutes."""
    return [name for name, one in LENSES.all().items() if isinstance(one, AttentionLens) or not one.costly]


def text_lenses() -> list[str]:
    """Those that look at the text's attention in one forward."""
    return [name for name, one in LENSES.all().items() if isinstance(one, AttentionLens) and not one.random]


def measured(scene: Scene, names: Sequence[str], watch: Watch = silent) -> Measured:
    """The figures of these lenses."""
    chosen = {name: LENSES.get(name) for name in names}
    figures: dict[str, torch.Tensor] = {}
    refused: dict[str, str] = {}
    for random in (False, True):
        own = {n: one for n, one in chosen.items() if isinstance(one, AttentionLens) and one.random == random}
        if own:
            watch("looking at random tokens" if random else "looking at the text", 0, 0)
            figures |= _of_attention(scene.subject, scene.random if random else scene.text, own)
    for name, one in chosen.items():
        if isinstance(one, ModelLens):
            watch(f"measuring {name}", 0, 0)
            try:
                figures[name] = one.of(scene, partial(watch, f"measuring {name}"))
            except HeadwiseError as error:
                refused[name] = str(error)
    there = heads_there(scene.subject)
    return Measured({n: figures[n].float().cpu().where(there, torch.nan) for n in names if n in figures}, refused)


def heads_there(subject: Subject) -> torch.Tensor:
    """Which places of a figure are heads, bool [layers, query heads]."""
    counts = torch.tensor([one.query_heads for one in subject.geometry.layers])
    return torch.arange(int(counts.max())) < counts[:, None]


def _of_attention(subject: Subject, text: Text, lenses: dict[str, AttentionLens]) -> dict[str, torch.Tensor]:
    """The figures [layers, query heads] of lenses of one text, by name."""
    layers = looked_at(subject, text, lambda look: {name: one.of(look).cpu() for name, one in lenses.items()})
    most = max(one.query_heads for one in subject.geometry.layers)
    found = {name: torch.full((len(subject.geometry.layers), most), torch.nan) for name in lenses}
    for layer, row in layers.items():
        for name, figures in row.items():
            found[name][layer, : len(figures)] = figures
    return found
