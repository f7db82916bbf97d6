"""Codes filled level by level: what a pass sees, how many are filled, and in which order."""

from __future__ import annotations

import math

import pytest
import torch

from headwise.decoding.diffusion.levels import fill_levels
from headwise.errors import HeadwiseError

MASK, CODES, FRAMES = 6, 6, 12


class Noted:
    """A model of random logits that notes what it was shown."""

    def __init__(self) -> None:
        self.seen: list[tuple[torch.Tensor, int]] = []
        self.logits = torch.randn(3, 2, FRAMES, CODES, generator=torch.Generator().manual_seed(0))

    def __call__(self, codes: torch.Tensor, level: int) -> torch.Tensor:
        self.seen.append((codes.clone(), level))
        return self.logits[level]


def test_one_round_takes_the_likeliest_code_of_every_place() -> None:
    model = Noted()
    found = fill_levels(model, torch.full((2, FRAMES, 3), MASK), MASK, (1, 1, 1))
    assert torch.equal(found.codes, model.logits.argmax(-1).permute(1, 2, 0)) and found.passes == 3
    assert [level for _, level in model.seen] == [0, 1, 2]


def test_a_level_is_filled_before_the_next_by_confidence_and_nothing_is_filled_twice() -> None:
    model = Noted()
    found = fill_levels(model, torch.full((2, FRAMES, 3), MASK), MASK, (5, 1, 2))
    for codes, level in model.seen:
        assert not (codes[..., :level] == MASK).any() and (codes[..., level + 1 :] == MASK).all()
        assert torch.equal(codes[codes != MASK], found.codes[codes != MASK])
    shown = [codes for codes, level in model.seen if level == 0]
    open_ = [int((codes[0, :, 0] == MASK).sum()) for codes in shown]
    assert open_ == [FRAMES, *(math.floor(FRAMES * math.cos(math.pi / 2 * r / 5) + 1e-6) for r in range(1, 5))]
    sure = model.logits[0, 0].softmax(-1).amax(-1)
    rounds = found.order[0, :, 0]
    assert all(sure[rounds == r].min() > sure[rounds == r + 1].max() for r in range(1, 5))


def test_what_is_known_stays_and_more_rounds_than_places_fill_one_a_pass() -> None:
    model, codes = Noted(), torch.full((2, FRAMES, 3), MASK)
    codes[:, :9, 0] = 3
    found = fill_levels(model, codes, MASK, (50, 1, 1))
    assert (found.codes[:, :9, 0] == 3).all() and (found.order[:, :9, 0] == 0).all()
    assert sorted(found.order[0, 9:, 0].tolist()) == [1, 2, 3] and found.passes == 5
    assert (codes[:, 9:] == MASK).all(), "what was given is left as it is"


def test_draws_are_of_the_models_probabilities() -> None:
    logits = torch.tensor([0.6, 0.3, 0.1]).log().expand(4000, 1, 3)
    found = fill_levels(lambda codes, level: logits, torch.full((4000, 1, 1), 3), 3, (1,), torch.Generator())
    shares = torch.bincount(found.codes.flatten(), minlength=3) / 4000
    assert torch.allclose(shares, torch.tensor([0.6, 0.3, 0.1]), atol=0.03)


@pytest.mark.parametrize("rounds", [(1, 1), (1, 0, 1), (1, 1, 1, 1)])
def test_rounds_that_fit_no_levels_are_refused(rounds: tuple[int, ...]) -> None:
    with pytest.raises(HeadwiseError, match="each level's passes"):
        fill_levels(Noted(), torch.full((2, FRAMES, 3), MASK), MASK, rounds)
