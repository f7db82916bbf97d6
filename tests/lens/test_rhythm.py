"""The rhythm of a text: both figures are what loops over a whole map give."""

from __future__ import annotations

import torch

from headwise.calibrate.subject import ModelSubject
from headwise.lens import Text
from headwise.lens.rhythm import SINCE, UNTIL, WINDOW, fai_of, rhythm, waad_of


def test_figures_are_those_of_loops() -> None:
    maps = torch.rand(70, 70, generator=torch.Generator().manual_seed(0)).tril()
    waad = [sum(float(maps[t, s]) * min(t - s, WINDOW) for s in range(t + 1)) for t in range(70)]
    torch.testing.assert_close(waad_of(maps), torch.tensor(waad), atol=1e-6, rtol=1e-5)
    found = fai_of(maps)
    for s in range(70):
        later = [float(maps[t, s]) for t in range(s + SINCE, min(70, s + UNTIL + 1))]
        assert found[s].isnan() if not later else abs(float(found[s]) - sum(later) / len(later)) < 1e-6


def test_maps_are_means_of_the_nearest_and_farthest_heads(subject: ModelSubject, text: Text) -> None:
    found = rhythm(subject, text)
    own = subject.model
    own.set_attn_implementation("eager")
    attention = torch.stack(own(text.ids, output_attentions=True).attentions)[:, 0]  # [layers, heads, n, n]
    places = torch.arange(text.tokens)
    far = (attention * (places[:, None] - places).clamp(min=0)).sum(-1).mean(-1).flatten()
    order, heads = far.argsort(), attention.flatten(0, 1)
    count = round(0.3 * len(order))
    torch.testing.assert_close(found.waad, waad_of(heads[order[:count]].mean(0)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.fai, fai_of(heads[order[-count:]].mean(0)), atol=1e-5, rtol=1e-3, equal_nan=True)
