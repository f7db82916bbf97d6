"""Every registered decoder at work on a small model: what the laws share. A new decoder needs no edit here, where its
knobs that name things of the model are among these."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch

import headwise
from headwise.decoders import DECODERS, Decoder, decoder
from headwise.faithful import detector as detectors
from headwise.faithful.looks import Looks
from headwise.seams.transformers.forward import cache_argument
from tests.engine.small import build, tokens
from tests.seams.transformers.seeing import IMAGE_TOKEN, PLACES, pixels, seeing

NEW = 6
NAMED = {"named": "1.3 2.0 2.7", "marks": "5 6 7 8 9", "concepts": 4, "threshold": -50.0}
CACHES = ["", "int8", "snapkv(0.4, sinks=2, recent=8)", "h2o(0.4, sinks=2, recent=6) | kivi(window=8, group=16)"]


def sentence(name: str, **knobs: Any) -> Decoder:
    """The decoder of a name, with what it is told of the small model."""
    cls = DECODERS.get(name)
    own = {one.name for one in fields(cls)}  # type: ignore[arg-type]
    return cls(**{knob: value for knob, value in (NAMED | knobs).items() if knob in own})


def neutral(name: str) -> Decoder:
    """The decoder at its neutral setting."""
    told = decoder(DECODERS.get(name).neutral)
    return sentence(name, **{one.name: getattr(told, one.name) for one in fields(told) if one.name not in NAMED})  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def small_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector for the small model, which has no tokenizer to fit one with."""
    told = {"heads": [[0, 0], [0, 7], [1, 3], [1, 7], [2, 0], [2, 6]], "weights": [1.0] * 6, "bias": 0.5}
    monkeypatch.setattr(detectors, "known", lambda model, what, measured: told)


def sees(made: Decoder | None) -> bool:
    """Whether a decoder looks at images."""
    return made is not None and "image" in made.needs


def model(made: Decoder | None = None) -> Any:
    """The small model, whose logits are sure enough to be told apart; one that reads images for a decoder of these."""
    return seeing() if sees(made) else build()


def text(rows: int = 1, count: int = 40, made: Decoder | None = None) -> torch.Tensor:
    """A prompt [rows, count]; with the places of an image for a decoder of these."""
    ids = tokens(count, rows=rows)
    if sees(made):
        ids[:, 4 : 4 + PLACES] = IMAGE_TOKEN
    return ids


def pictures(made: Decoder, rows: int = 1) -> torch.Tensor | None:
    """The pixels of the prompts' images; None for decoders of text."""
    return pixels(rows) if sees(made) else None


def looking(own: Any, cache: headwise.Cache, made: Decoder, pictured: torch.Tensor | None) -> Looks:
    """Looks at a text with these pictures."""
    looks = Looks(own, cache, made)
    if pictured is not None:
        looks.pixels, looks.given = pictured, {"pixel_values": pictured}
    return looks


def cache_of(own: Any, recipe: str = "", rows: int = 1) -> headwise.Cache:
    """A cache whose prompt's context is marked."""
    return headwise.Cache(own, recipe, marks=[headwise.Mark("context", 4, 30, row) for row in range(rows)])


def written(own: Any, ids: torch.Tensor, made: Decoder | None, cache: headwise.Cache, **how: Any) -> torch.Tensor:
    """What is written after ids, by a decoder or without one."""
    if made is not None:
        how["custom_generate"] = headwise.contrast(own, cache, made, pixels=pictures(made, len(ids)))
    if bool((ids == IMAGE_TOKEN).any()):
        how["pixel_values"] = pixels(len(ids))
    how = {"max_new_tokens": NEW, "do_sample": False, **how}
    out: torch.Tensor = own.generate(ids, **{cache_argument(type(own)): cache}, **how)
    return out
