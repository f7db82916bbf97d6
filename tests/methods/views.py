"""Views of random data, for tests of single methods: everything granted, or only what a method asks for."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch

from headwise.attention.view import Memory, View
from headwise.forms import Scoring
from headwise.shapes import Rope

LETTERS = re.compile(r"(\d*)([deng]?)(?:\+(\d+))?")
BY_TOKEN = ("keys", "values", "mass", "notes", "levels")


def rope(width: int, *, interleaved: bool = False, scale: float = 1.0, base: float = 100.0) -> Rope:
    """A rotary embedding of `width` channels."""
    return Rope(base ** -(torch.arange(0, width, 2) / width), interleaved, scale)


def make_view(
    n: int, g: int = 2, t: int | None = None, *, h: int = 2, d: int = 16, seed: int = 0, turn: Rope | None = None
) -> View:
    """n tokens at positions 0..n-1 whose last t (default: all) queries are at hand; everything is granted."""
    random = torch.Generator().manual_seed(seed)
    t = n if t is None else t
    keys = torch.randn(h, n, d, generator=random) + torch.randn(h, 1, d, generator=random)
    queries = torch.randn(h, g, t, d, generator=random) + torch.randn(h, g, 1, d, generator=random)
    return View(
        layer=3,
        heads=tuple(range(h)),
        phase="prefill" if t > 1 else "decode",
        seen=n,
        scoring=Scoring(d**-0.5),
        seed=seed,
        positions=torch.arange(n).repeat(h, 1),
        granted={
            "keys": keys,
            "values": torch.randn(h, n, d - 4, generator=random),
            "queries": queries,
            "query_positions": torch.arange(n - t, n),
            "mass": torch.rand(h, n, generator=random),
            "notes": (torch.rand(h, n, 2, generator=random) * n).round(),
            "levels": torch.zeros(h, n, dtype=torch.int64),
            "rope": turn,
            "memory": Memory({}, 3, tuple(range(h))),
            "calibration": {},
            "marks": (),
        },
    )


def until(text: View, seen: int, t: int) -> View:
    """The view of a text, all of whose queries are at hand, when it had come to `seen` tokens, the last t of them new.
    What has left it had left by then."""
    stored = seen - (text.seen - text.count)
    granted = {name: text.granted[name][:, :stored] for name in BY_TOKEN}
    asked = {"queries": text.queries[:, :, seen - t : seen], "query_positions": text.query_positions[seen - t : seen]}
    return replace(text, seen=seen, positions=text.positions[:, :stored], granted={**text.granted, **granted, **asked})


def thinned(view: View, gone: int) -> View:
    """The view after an eviction of so many tokens of its first half, other ones in each head."""
    random, half = torch.Generator().manual_seed(view.layer), view.count // 2
    stays = torch.ones(view.positions.shape, dtype=torch.bool)
    for own in stays:
        own[torch.randperm(half, generator=random)[:gone]] = False
    left = {name: view.granted[name][stays].unflatten(0, (len(stays), -1)) for name in BY_TOKEN}
    positions = view.positions[stays].view(len(stays), -1)
    return replace(view, positions=positions, granted={**view.granted, **left})


def remembering(part: Any, n: int, g: int, t: int, gone: int = 0) -> View:
    """The last t of n tokens, as a selection sees them that has gone the whole way: it learned of a prompt in two
    chunks, of which so many tokens were then evicted, and took notes at a step of one token and at this one, in each
    layer up to the view's."""
    texts = [replace(make_view(n, g, seed=layer), layer=layer) for layer in range(4)]
    notes: dict[tuple[int, int, str], torch.Tensor] = {}
    half, prompt = (n - t) // 2, n - t - 1
    chunks = (("prefill", half, half), ("prefill", prompt, prompt - half), ("decode", n - t, 1), ("decode", n, t))
    for phase, seen, new in chunks if part.learns else chunks[2:]:
        for layer, whole in enumerate(texts):
            text = thinned(whole, gone) if phase == "decode" else whole
            memory = Memory(dict(notes), layer, text.heads)
            view = changed(replace(until(text, seen, new), phase=phase), memory=memory)
            noted = (part.learn if phase == "prefill" else part.remember)(granting(view, part.view_needs))
            for name, tensors in noted.items():
                notes |= {(layer, head, name): one for head, one in zip(text.heads, tensors, strict=True)}
    return changed(view, memory=Memory(notes, layer, text.heads))


def shown(part: Any, view: View) -> View:
    """The view as `part` gets it, with summaries of all whole blocks of its keys."""
    granted = granting(view, part.view_needs)
    if "summaries" not in part.view_needs:
        return granted
    whole = view.count // part.summary_size
    blocks = view.keys[:, : whole * part.summary_size].unflatten(1, (whole, part.summary_size))
    return changed(granted, summaries=part.summarise(granted, blocks))


def granting(view: View, needs: frozenset[str]) -> View:
    """The view as a method that names `needs` gets it, but for summaries, which are the method's own."""
    wanted = needs | ({"query_positions"} if "queries" in needs else set())
    return replace(view, granted={name: value for name, value in view.granted.items() if name in wanted})


def changed(view: View, **granted: object) -> View:
    """The view with some of what it grants replaced."""
    return replace(view, granted={**view.granted, **granted})


def calibrated(part: Any, view: View) -> View:
    """The view with random calibration tensors [h, ...] of the sizes that `part` declares."""
    random = torch.Generator().manual_seed(1)
    widths = {"d": view.keys.shape[2], "e": view.values.shape[2], "g": view.queries.shape[1], "n": 8}
    drawn = {}
    for name, tensor in part.calibrates.items():
        words = (LETTERS.fullmatch(word) for word in tensor.sizes.replace("?", "").split())
        sizes = [int(word[1] or 1) * widths.get(word[2], 1) + int(word[3] or 0) for word in words if word]
        drawn[name] = torch.randn(len(view.heads), *sizes, generator=random) / max(1, *sizes[:1], 1) ** 0.5
    return changed(view, calibration=drawn)
