"""Pointers that are followed twice, and objects that are the same or not, say what they should."""

from __future__ import annotations

from itertools import pairwise

import pytest

from headwise.errors import RecipeError
from headwise.tasks.pointers import SameDifferent, TwoHop
from headwise.tasks.sequences import IGNORED, parse_sequence_task


@pytest.mark.parametrize("seed", range(3))
def test_a_name_is_answered_by_what_its_pointer_points_to(seed: int) -> None:
    inputs, labels = TwoHop().sequence(seed)
    points = {int(pair) // 6: int(pair) % 6 for pair in inputs[:6]}
    assert sorted(points) == sorted(points.values()) == list(range(6))
    assert [int(one) - 36 for one in labels[6:]] == [points[points[int(name) - 36]] for name in inputs[6:]]
    assert (labels[:6] == IGNORED).all()


@pytest.mark.parametrize("seed", range(3))
def test_an_object_is_the_same_as_the_one_before_it_or_not(seed: int) -> None:
    inputs, labels = SameDifferent(10, length=200).sequence(seed)
    assert inputs.min() >= 2 and inputs.max() < 10 and labels[0] == IGNORED
    assert labels[1:].tolist() == [int(one == before) for before, one in pairwise(inputs)]
    assert 0.3 < labels[1:].mean() < 0.7


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("two_hop(40)", "half of it squared and that half, 42"),
        ("two_hop(42, length=11)", "an even length of 6 or more"),
        ("same_different(3)", "2 tokens and 4 ids or more"),
    ],
)
def test_impossible_sequences_are_refused(text: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        parse_sequence_task(text)
