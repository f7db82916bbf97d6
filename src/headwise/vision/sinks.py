"""Where a prompt's sinks lie: tokens that heads attend to whatever they show, known by a few massive channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from headwise.choose import choose
from headwise.seams.transformers.staged import Between
from headwise.shapes import Mark
from headwise.vision.seen import Picture, read

SINK = "sink"  # the kind of mark that `var` reads
CHANNELS = 2  # massive channels of a model
TAU = 20 / 64  # the threshold 20 of a width of 4096, as a share of the most that a channel can have, sqrt(width)


def normalised(states: Tensor) -> Tensor:
    """Magnitudes of states [n, width] at a root mean square of 1."""
    return states.abs() * states.pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt()


def sink_channels(states: Tensor, count: int = CHANNELS) -> Tensor:
    """The channels [count] in which a prompt's first token is largest, of states [n, width]: every model's first token
    is a sink."""
    own = normalised(states[:1])
    return choose(own, count, torch.zeros_like(own, dtype=torch.bool))[0]


def sinks(states: Tensor, channels: Tensor, tau: float = TAU) -> Tensor:
    """Which tokens are sinks by states [n, width]: bool [n]. tau: of sqrt(width), what one of the channels exceeds."""
    return normalised(states)[:, channels].amax(-1) > tau * states.shape[1] ** 0.5


def found(model: Any, ids: Tensor, picture: Picture, tau: float = TAU) -> Tensor:
    """Which tokens of a prompt of ids [n] about a picture are sinks half way through the model: bool [n]."""
    states: list[Tensor] = []

    class Watching:
        """Leaves nothing out."""

        def stay(self, seen: Any) -> None:
            now: Between = seen.now
            if now.layer == seen.layers // 2:
                states.append(now.states)

    read(model, ids, picture, Watching())  # type: ignore[arg-type]
    return sinks(states[0], sink_channels(states[0]), tau)


def marks_of(places: Sequence[bool], kind: str = SINK, row: int = 0) -> list[Mark]:
    """A mark of each place that holds."""
    return [Mark(kind, at, at + 1, row) for at, one in enumerate(places) if one]
