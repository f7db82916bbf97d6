"""Sequences of bytes of the novel: what follows is asked, and nothing that is held out is trained on."""

from __future__ import annotations

import pytest

from headwise.errors import RecipeError
from headwise.models.host_training import HELD
from headwise.tasks.haystack import book
from headwise.tasks.sequences import parse_sequence_task


@pytest.mark.parametrize(("seed", "split"), [(3, "tune"), (HELD + 3, "test"), (2 * HELD, "test")])
def test_a_piece_is_of_its_book_and_asks_for_the_next_byte(seed: int, split: str) -> None:
    inputs, labels = parse_sequence_task("novel_bytes(length=40)").sequence(seed)
    assert (inputs[1:] == labels[:-1]).all()
    text = book("tune" if split == "tune" else "test").encode()
    assert bytes([*inputs.tolist(), labels[-1]]) in text


def test_what_no_book_has_is_refused() -> None:
    with pytest.raises(RecipeError, match="vocabulary=128 is less than a byte has; give 256"):
        parse_sequence_task("novel_bytes(vocabulary=128)")
    with pytest.raises(RecipeError, match="is longer than either book; give"):
        parse_sequence_task("novel_bytes(length=10000000)")
