"""Sequences of flip-flop and of selective copying say what they should."""

from __future__ import annotations

import pytest

from headwise.errors import RecipeError
from headwise.tasks.flip_flop import READ, WRITE, FlipFlop
from headwise.tasks.selective_copy import ASK, BLANK, SelectiveCopy
from headwise.tasks.sequences import IGNORED, parse_sequence_task


@pytest.mark.parametrize("seed", range(5))
def test_a_read_bit_is_the_last_that_was_written(seed: int) -> None:
    inputs, labels = FlipFlop(length=200, ignored=0.5).sequence(seed)
    held = -1
    for place in range(0, 200, 2):
        instruction, bit = inputs[place : place + 2]
        held = bit if instruction == WRITE else held
        assert labels[place] == (held if instruction == READ else IGNORED) and labels[place + 1] == IGNORED
        assert bit in (3, 4) and (instruction != READ or bit == held)
    assert inputs[0] == WRITE and inputs[-2] == READ


def test_selected_ids_are_asked_in_their_order() -> None:
    inputs, labels = SelectiveCopy(length=40, items=5).sequence(3)
    items = [one for one in inputs.tolist() if one not in (BLANK, ASK)]
    assert len(items) == 5 and labels[-5:].tolist() == items
    assert (inputs[-5:] == ASK).all() and (labels[:-5] == IGNORED).all()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("flip_flop(length=33)", "an even length of 4 or more, and 5 ids"),
        ("flip_flop(8)", "64 tokens of 8 ids"),
        ("selective_copy(length=6, items=4)", "twice as many tokens as items"),
    ],
)
def test_impossible_sequences_are_refused(text: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        parse_sequence_task(text)
