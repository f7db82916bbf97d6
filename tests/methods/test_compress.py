"""What single compressions promise beyond the contract."""

from __future__ import annotations

import pytest
import torch

from headwise.errors import RecipeError
from headwise.recipe import Recipe
from tests.contract.drive import Text, geometry, run

FOUR = "kivi(4, value=4, window=0)"


def test_zipvl_with_all_of_the_mass_is_four_bits_for_all() -> None:
    text = Text.random(geometry(), 166)
    (one, out), (_, four) = (
        run(geometry(), Recipe.parse(sentence), text, [160], 6) for sentence in ("zipvl_bits(1.0)", FOUR)
    )
    assert torch.equal(out, four)
    assert [part.lengths for part in one.stores(0)[0].parts] == [[6, 6], [160, 160], [0, 0]]


def test_zipvl_counts_follow_the_attention_of_each_head() -> None:
    """One head looks at one token, the other at all alike: the first needs few tokens at 4 bits, the second many."""
    text = Text.random(geometry(), 160)
    text.k[:, :, 0] *= 0.01
    text.k[:, :, 0, 3] = 20 * text.q[:, :, :2].mean((2, 3))
    text.q[:, :, :2] = text.q[:, :, :2].mean((2, 3), keepdim=True)
    session, _ = run(geometry(), Recipe.parse("zipvl_bits(0.9, group=16)"), text, [160], 0)
    at_four = [store.parts[1].lengths for store in (session.stores(layer)[0] for layer in range(2))]
    assert all(first < second for first, second in at_four), at_four


def test_a_rounded_token_is_not_judged_again() -> None:
    text = Text.random(geometry(), 300)
    session, _ = run(geometry(), Recipe.parse("zipvl_bits(0.7, group=16)"), text, [165], 0)
    store = session.stores(0)[0]
    before = store.levels(0, 1)[0]
    session, _ = run(geometry(), Recipe.parse("zipvl_bits(0.7, group=16)"), text, [165], 70)
    after = session.stores(0)[0].levels(0, 1)[0, :165]
    assert torch.equal(after[before > 0], before[before > 0])
    assert (after[before == 0] > 0).any()


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("zipvl_bits(0)", "mass must be greater than 0"),
        ("zipvl_bits(group=20)", "group must be 16, 32, 64 or 128, got 20"),
        ("low_rank(1.0, value=1.0)", "one of them below 1"),
        ("low_rank(0)", "key must be greater than 0"),
        ("low_rank(bits=2)", "bits must be 16, 8 or 4"),
        ("low_rank(keys='turned')", "'turned'"),
        ("low_rank(window=-1)", "window must be greater than or equal to 0, got -1"),
        ("xkv(layers=0)", "layers must be greater than or equal to 1"),
        ("xkv(1.0, value=1.0)", "one of them below 1"),
    ],
)
def test_wrong_knobs_are_named(sentence: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Recipe.parse(sentence)
