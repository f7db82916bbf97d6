"""Hand-made cases of the patterns by modality: what the queries of text and of images look for, in planted spans."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from headwise.attention.view import View
from headwise.errors import HeadwiseError
from headwise.forms import Scoring
from headwise.methods.prefill.boundary import Boundary2D, QBoundary
from headwise.shapes import Mark
from tests.methods.views import changed, make_view

N, IMAGE = 1600, Mark("image", 400, 1000)


def planted(columns: dict[tuple[str, int], float]) -> View:
    """Text, an image, text. Queries of a kind look for the 16 keys from a place on, with scores as given."""
    view = make_view(N, h=1)
    keys, queries = 0.05 * view.keys, 0.05 * view.queries
    for channel, ((kind, place), score) in enumerate(columns.items()):
        spans = [slice(400, 1000)] if kind == "image" else [slice(0, 400), slice(1000, N)]
        keys[0, place : place + 16, channel] = score
        for span in spans:
            queries[0, :, span, channel] = 1.0
    return changed(replace(view, scoring=Scoring(1.0)), keys=keys, queries=queries, marks=(IMAGE,))


def read(method: QBoundary | Boundary2D, view: View) -> torch.Tensor:
    """Blocks that are read [query blocks, key blocks], 16 tokens each."""
    return method.where(view).dense(N, N)[0].unflatten(1, (100, 16)).any(2).unflatten(0, (100, 16)).any(1)


@pytest.mark.parametrize("method", [QBoundary, Boundary2D])
def test_each_modality_has_its_own_columns(method: type[QBoundary]) -> None:
    """Without marks the last queries, which are text, decide for those of the image too."""
    view, one = planted({("image", 160): 12.0, ("text", 320): 12.0}), method(verticals=16, slashes=0, size=16)
    blocks = read(one, view)
    assert blocks[30:62, 10].all() and not blocks[30:62, 20].any()
    assert blocks[64:, 20].all() and not blocks[64:, 10].any()
    attention = view.observe(N)[0].mean(0)[440:]  # where a query has more before it than it would read in any case
    kept = float((attention * one.where(view).dense(N, N)[0, 440:]).sum(1).mean())
    alike = one.where(changed(view, marks=()))
    assert kept >= 0.95
    assert float((attention * alike.dense(N, N)[0, 440:]).sum(1).mean()) < 0.7
    assert one.where(view).density(N, N) <= alike.density(N, N) + 0.02


def test_each_modality_of_keys_has_its_own_columns_in_2d() -> None:
    """Two columns of text leave none for the image that text looks at, even at twice the columns."""
    view = planted({("text", 160): 12.0, ("text", 320): 12.0, ("text", 640): 9.0})
    crowded = read(QBoundary(verticals=32, slashes=0, size=16), view)
    apart = read(Boundary2D(verticals=16, slashes=0, size=16), view)
    assert crowded[64:, [10, 20]].all() and not crowded[64:90, 40].any()
    assert apart[64:, 40].all() and (apart[64:, 10] ^ apart[64:, 20]).all()


def test_diagonals_are_those_of_the_modality_that_looks_along_them() -> None:
    """Image queries look 25 blocks back, each for a block of its own; text queries at one block."""
    view = planted({("text", 320): 12.0})
    view = changed(view, keys=torch.cat((view.keys, torch.zeros(1, N, 100)), 2),
                   queries=torch.cat((view.queries, torch.zeros(1, 2, N, 100)), 3))  # fmt: skip
    for block in range(25, 62):
        view.keys[0, (block - 25) * 16 : (block - 24) * 16, 16 + block] = 12.0
        view.queries[0, :, block * 16 : (block + 1) * 16, 16 + block] = 1.0
    blocks = read(QBoundary(verticals=16, slashes=16, size=16), view)
    there = torch.arange(26, 62)
    assert blocks[there, there - 25].all()
    later = torch.arange(64, 100)
    assert not blocks[later, later - 25].logical_and(later - 25 != 20).any()


@pytest.mark.parametrize("t", [257, 130, 33])
@pytest.mark.parametrize("method", [QBoundary, Boundary2D])
def test_patterns_with_marks_equal_the_plain_ones(method: type[QBoundary], t: int) -> None:
    """Overlapping marks, marks of one kind in two places, marks still to come; chunks that begin inside a block."""
    marks = (Mark("image", 20, 90), Mark("sound", 80, 140), Mark("image", 200, 240), Mark("text", 230, 400))
    one = method(verticals=20, slashes=16, last=24, size=16)
    for g in (1, 3):
        view = changed(make_view(257, g, t), marks=marks)
        assert torch.equal(one.where(view).dense(t, 257), one.plain(view).dense(t, 257))
        assert one.where(view).density(t, 257) < 0.95


def test_knobs_below_their_least_are_refused() -> None:
    with pytest.raises(HeadwiseError, match="last must be greater than or equal to 1, got 0"):
        QBoundary(last=0)
