"""Single heads from near: their pattern, exact wherever one looks, what they write, and what breaks without them."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from headwise.calibrate.subject import model_of
from headwise.lens.interventions import ablated
from headwise.lens.look import Look, looked_at
from headwise.lens.losses import MOST_PLACES, MOST_TOKENS, spread, token_losses
from headwise.lens.scene import Scene
from headwise.lens.writes import Vocabulary
from headwise.seams.transformers.beside import Head

SOURCES = 128  # different tokens of the text whose map is read
ROWS, TARGETS = 8, 5  # tokens that a head writes most about, and what it writes for each
HURT = 8  # tokens that are shown as foretold worse
SHARE = 0.05  # of the heads, those of a lens's highest figures, that are left out together

Told = dict[str, Any]
Spell = Callable[[int], str]  # a token id as text


@dataclass(frozen=True)
class Patterns:
    """What patterns are drawn from. tiles: by layer, 8 bits a tile [H, m, m], the square root of what it gets of 255,
    as base64. heads: by "layer.head", queries and keys [n, d] in float16, each row's log-sum-exp and the first place
    that it sees, and the scoring: of these any block of the pattern can be computed, as exactly as 11 bits of a number
    allow."""

    tiles: list[str]
    heads: dict[str, Told]


def patterns(scene: Scene, heads: Sequence[Head]) -> Patterns:
    """The tiles of all heads and the queries and keys of these, in one forward."""

    def of(look: Look) -> tuple[str, dict[str, Told]]:
        tiles = (look.tiles.clamp(min=0, max=1).sqrt() * 255).round().to(torch.uint8)
        own = [(layer, head) for layer, head in heads if layer == look.attention.layer]
        return packed(tiles), {f"{layer}.{head}": _pattern(look, head) for layer, head in own}

    layers = looked_at(scene.subject, scene.text, of)
    tiles = [layers[layer][0] if layer in layers else "" for layer in range(len(scene.subject.geometry.layers))]
    return Patterns(tiles, {name: one for _, own in layers.values() for name, one in own.items()})


def _pattern(look: Look, head: int) -> Told:
    one = look.attention
    key = one.k[0, head // (one.q.shape[1] // one.k.shape[1])]
    return {
        "q": packed(one.q[0, head].half()),
        "k": packed(key.half()),
        "lse": packed(look.lse[head].float()),
        "scale": one.scoring.scale,
        "softcap": one.scoring.softcap,
        "first": look.first.tolist(),
    }


def packed(tensor: torch.Tensor) -> str:
    """A tensor's bytes, little-endian, as base64."""
    return base64.b64encode(tensor.detach().cpu().contiguous().numpy().tobytes()).decode()


def writings(scene: Scene, heads: Sequence[Head], spell: Spell) -> dict[str, list[Told]]:
    """By head, the tokens of the text that it writes most distinctly about, and what it writes when it attends to
    them: the tokens of the highest logits."""
    different = scene.text.ids[0].unique()
    vocabulary = Vocabulary(scene.subject, different[spread(len(different), SOURCES)])
    found = {}
    for layer, head in heads:
        logits = vocabulary.written((layer, head))
        distinct = (logits.amax(-1) - logits.mean(-1)) / logits.std(-1)
        rows = distinct.topk(min(ROWS, len(distinct))).indices.tolist()
        best = logits.topk(TARGETS).indices
        found[f"{layer}.{head}"] = [
            {"at": spell(int(vocabulary.ids[row])), "writes": [spell(int(one)) for one in best[row]]} for row in rows
        ]
    return found


@torch.no_grad()
def broken(scene: Scene, heads: Sequence[Head], progress: Callable[[int, int], None]) -> dict[str, Told]:
    """By head, what the text loses by token without it, in nats, and the places of the text that lose most."""
    without, found = _without(scene), {}
    for done, head in enumerate(heads):
        found[f"{head[0]}.{head[1]}"] = without([head])
        progress(done + 1, len(heads))
    return found


@torch.no_grad()
def broken_together(
    scene: Scene, figures: dict[str, torch.Tensor], progress: Callable[[int, int], None]
) -> dict[str, Told]:
    """By lens, the same without its best heads together, a twentieth of all, and what is lost without as many others of
    the same layers, or all of these where they are fewer."""
    without, chance, found = _without(scene), torch.Generator().manual_seed(scene.seed), {}
    for done, (name, one) in enumerate(figures.items()):
        count = max(1, round(SHARE * int((~one.isnan()).sum())))
        order = one.nan_to_num(-torch.inf).flatten().argsort(descending=True, stable=True)
        own = [divmod(int(place), one.shape[1]) for place in order[:count]]
        others = []
        for layer, wanted in Counter(layer for layer, _ in own).items():
            there = [(layer, h) for h in range(one.shape[1]) if not one[layer, h].isnan() and (layer, h) not in own]
            others += [there[i] for i in torch.randperm(len(there), generator=chance)[:wanted].tolist()]
        told = {"others": len(others), "others_loss": without(others)["loss"]}
        found[name] = {"heads": [f"{layer}.{head}" for layer, head in own], **without(own), **told}
        progress(done + 1, len(figures))
    return found


def _without(scene: Scene) -> Callable[[Sequence[Head]], Told]:
    """What tells what the text loses without some heads: `loss` by token in nats, and the places that it hurts most."""
    places = spread(min(scene.text.tokens, MOST_TOKENS) - 1, MOST_PLACES)
    whole = token_losses(scene, places)

    def without(heads: Sequence[Head]) -> Told:
        with ablated(model_of(scene.subject), heads):
            worse = (token_losses(scene, places) - whole).cpu()
        most = worse.topk(min(HURT, len(worse)))
        hurt = [{"place": int(places[i]) + 1, "loss": float(x)} for x, i in zip(*most, strict=True) if x > 0]
        return {"loss": float(worse.mean()), "hurt": hurt}

    return without
