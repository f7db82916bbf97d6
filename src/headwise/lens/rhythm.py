"""The rhythm of a text by what heads look at: where local heads look past their neighbourhood, and which tokens later
ones come back to (Attention Illuminates LLM Reasoning, arXiv 2510.13554).

Heads are ranked by the mean distance that they look; the nearest make one map of the text, the farthest another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from headwise.errors import HeadwiseError
from headwise.lens.host_look import HostLook
from headwise.lens.hosts import HostScene, looked_into
from headwise.lens.look import Look, looked_at
from headwise.lens.scene import Text
from headwise.observe import Subject

SHARE = 0.3  # of all heads that a map is the mean of
WINDOW = 10  # tokens back from which on a distance counts no more
SINCE, UNTIL = 10, 50  # tokens on, between which a token is come back to


@dataclass(frozen=True, eq=False)
class Rhythm:
    """Of each token of a text, float32 [n]. waad: how far back local heads look, in tokens, at most WINDOW. fai: the
    mean attention that global heads give it from SINCE to UNTIL tokens on; not a number where none of these is left."""

    waad: torch.Tensor
    fai: torch.Tensor


def rhythm(subject: Subject, text: Text) -> Rhythm:
    """What both maps say of a text; n x n numbers of one layer at a time are held."""
    return _rhythm(partial(looked_at, subject, text), text.tokens)


def host_rhythm(scene: HostScene) -> Rhythm:
    """The same of what the decoder beside an encoder writes, by its attention to its own tokens."""
    own = [one for one in scene.host.stacks if one.causal]
    if not own:
        raise HeadwiseError(
            f"a rhythm is told by what later tokens come back to, and {scene.host.name} reads both ways; give a "
            "decoder, or an encoder-decoder"
        )

    def looked(of: Callable[[HostLook], Any]) -> dict[int, Any]:
        return looked_into(scene, of, own)[own[0].name]

    return _rhythm(looked, scene.readings[own[0].queries].tokens)


def _rhythm(looked: Callable[[Callable[[Any], Any]], dict[int, Any]], n: int) -> Rhythm:
    """Both maps of n tokens, of what `looked` makes of the look at each layer."""
    distances = looked(lambda look: look.distance.mean(1).cpu())
    heads = sorted((float(far), layer, head) for layer, row in distances.items() for head, far in enumerate(row))
    count = max(1, round(SHARE * len(heads)))
    local, far = ({(layer, head) for _, layer, head in some} for some in (heads[:count], heads[-count:]))

    def maps(look: Look | HostLook) -> list[torch.Tensor]:
        layer = look.attention.layer
        chosen = [[head for at, head in some if at == layer] for some in (local, far)]
        if not any(chosen):
            return [torch.zeros(n, n)] * 2
        weights = look.mean(torch.eye(n, device=look.places.device)).cpu()
        return [weights[own].sum(0) for own in chosen]

    found = looked(maps).values()
    near, wide = (sum((one[side] for one in found), torch.zeros(())) / count for side in (0, 1))
    return Rhythm(waad_of(near), fai_of(wide))


def waad_of(local: torch.Tensor) -> torch.Tensor:
    """The windowed distance [n] that a map [n, n], queries down, looks back."""
    places = torch.arange(len(local))
    return (local * (places[:, None] - places).clamp(min=0, max=WINDOW)).sum(1)


def fai_of(wide: torch.Tensor) -> torch.Tensor:
    """The mean attention [n] that tokens get later, of a map [n, n], queries down."""
    places = torch.arange(len(wide))
    later = places[:, None] - places
    counts = (later >= SINCE) & (later <= UNTIL)
    return (wide * counts).sum(0) / counts.sum(0).where(counts.any(0), torch.nan)
