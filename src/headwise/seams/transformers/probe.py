"""What a tiny forward pass shows of a model: the geometry of its attention, and how its keys are rotated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from headwise.attention import attend
from headwise.errors import UnsupportedModel
from headwise.forms import Causal, Scoring, near
from headwise.geometry import Geometry, LayerGeometry
from headwise.plan import Plan
from headwise.shapes import Rope

BY_LENGTH = ("dynamic", "longrope")  # scalings of rotary frequencies that depend on how long the sequence is


class AttendsByItself(UnsupportedModel):
    """A model has something beyond what the attention function is told, so that only itself can attend."""


@dataclass(frozen=True)
class Asked:
    """How one layer asks for attention: by which scores, within a sliding `window` of keys, where `chunked` one that
    begins anew every so many, or None; whether keys and values are one `latent` vector a token."""

    scoring: Scoring
    window: int | None
    chunked: bool = False
    latent: bool = False


@dataclass(frozen=True)
class Sighting:
    """What one layer handed over in the probe: its keys [h, t, d], value width, query heads and scoring. reads: the
    layer that these keys are of, where they are another's."""

    keys: torch.Tensor
    value_width: int
    query_heads: int
    asked: Asked
    reads: int | None = None


@dataclass(frozen=True)
class Seam:
    """What is known of a model after it was checked: its geometry, its rotary embeddings, its fingerprint.

    ropes is None where keys are rotated in a way that could not be identified, or by where in an image they stand; only
    methods that undo it mind.
    rope_switch: tokens beyond which a forward rotates its keys by other frequencies (longrope), None where none does.
    by_itself: why the model attends by itself over what its cache hands back, see `by_itself.py`; None where its
    attention is computed by headwise. image_token: the id that stands where an image is read; None in a text model.
    across: the same of its layers of cross-attention, of a model with an encoder, which is else told of its decoder.
    """

    geometry: Geometry
    ropes: tuple[Rope | None, ...] | None
    fingerprint: str
    rope_switch: int | None = None
    by_itself: str | None = None
    image_token: int | None = None
    across: Seam | None = None


def attend_once(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, asked: Asked) -> torch.Tensor:
    """Dense causal attention of one sequence: q [1, H, t, d], of the last t tokens of k [1, h, n, d] and
    v [1, h, n, e] -> [1, H, t, e]."""
    grouped = q[0].unflatten(0, (k.shape[1], -1))
    t, held = q.shape[2], k.shape[2]
    where = Causal() if asked.window is None else near(asked.window, asked.chunked, held, t, held)
    return attend(grouped, k[0], v[0], where, asked.scoring).out.flatten(0, 1)[None]


def geometry(sightings: Sequence[Sighting | None], states: Sequence[int], max_positions: int) -> Geometry:
    """The geometry of layers by what each handed over, and the numbers that a row passes on as its state; raises
    UnsupportedModel where none attends."""
    if not any(sightings):
        raise UnsupportedModel(
            f"none of {len(sightings)} layers hands keys and values to the cache, so that there is nothing to govern; "
            "run it without headwise"
        )
    layers = tuple(_layer(one, state) for one, state in zip(sightings, states, strict=True))
    return Geometry(layers, max_positions)


def _layer(one: Sighting | None, state: int) -> LayerGeometry:
    """A layer that handed this over, or nothing, and passes on so many numbers."""
    if one is None:
        return LayerGeometry(0, 0, 0, 0, kind="state" if state else "none", state=state)
    if one.reads is not None:
        return LayerGeometry(
            one.query_heads, 0, 0, 0, one.asked.window, one.asked.chunked,
            sinks=one.asked.scoring.sinks is not None, kind="reader", state=state, reads=one.reads,
        )  # fmt: skip
    return LayerGeometry(
        one.query_heads,
        one.keys.shape[0],
        one.keys.shape[2],
        one.value_width,
        one.asked.window,
        one.asked.chunked,
        sinks=one.asked.scoring.sinks is not None,
        kind="latent" if one.asked.latent else "attention",
        state=state,
    )


def ropes(sightings: Sequence[Sighting | None], frequencies: Iterable[torch.Tensor]) -> tuple[Rope | None, ...] | None:
    """The rotation of every layer, found by undoing it; None when a layer's keys fit none of the candidates.

    The probe's tokens are all the same, so before rotation a layer's keys are the same at every position: the right
    candidate is the one that makes them so. `frequencies` are the candidates, in radians per position; a model without
    any (learned positions) rotates nothing.
    """
    frequencies = list(frequencies)
    if not frequencies:
        return (None,) * len(sightings)
    candidates: list[Rope | None] = [None]
    candidates += [Rope(f, interleaved) for f in frequencies for interleaved in (False, True)]
    found: list[Rope | None] = []
    for one in sightings:
        if one is None:
            found.append(None)
            continue
        fitting = [rope for rope in candidates if _undone(rope, one.keys.float())]
        if not fitting:
            return None
        found.append(fitting[0])
    return tuple(found)


def _undone(rope: Rope | None, keys: torch.Tensor) -> bool:
    """Whether undoing `rope` leaves keys [h, t, d] equal at all positions, to rounding."""
    if rope is not None:
        if 2 * rope.frequencies.numel() > keys.shape[-1]:
            return False
        keys = rope.unrotate(keys, torch.arange(keys.shape[1], device=keys.device))
    spread = (keys - keys[:, :1]).norm() / keys.norm().clamp_min(1e-12)
    return bool(spread < 2e-2)


def undoes_rotations(plan: Plan) -> bool:
    """Whether a method of the plan undoes how keys are rotated."""
    recipes = {recipe for heads in plan.recipes for recipe in heads}
    return any("rope" in part.view_needs for recipe in recipes for part in recipe.parts)


def refuse_positions(plan: Plan, ropes: Sequence[Rope | None] | None, kinds: Iterable[str]) -> None:
    """Raise UnsupportedModel where `plan` undoes rotations that cannot be undone, or changes positions that a model
    with these ropes does not have. kinds: how its rotary embeddings are scaled, as the model calls it."""
    recipes = {recipe for heads in plan.recipes for recipe in heads}
    if ropes is None and undoes_rotations(plan):
        raise UnsupportedModel(
            "the recipe undoes rotary positions, but how this model rotates its keys was not recognised, or follows "
            "the places of images (M-RoPE); use a method without 'rope' in its needs, such as snapkv"
        )
    placing = next((recipe.select for recipe in recipes if recipe.repositions), None)
    if placing is None:
        return
    named = f"positions='{placing.positions}' of {placing.name}"
    if ropes is None or not any(ropes):
        raise UnsupportedModel(f"{named}: this model does not rotate its keys by their positions; leave it out")
    if changing := [kind for kind in kinds if any(one in kind for one in BY_LENGTH)]:
        raise UnsupportedModel(
            f"{named}: the model's rotary embedding is of kind {sorted(changing)}, whose frequencies change with the "
            "length, so that stored keys cannot be turned to other positions; leave it out"
        )
