"""Sahara: angles between subspaces, and that a group grows by the head that turns it most."""

from __future__ import annotations

import math

import pytest
import torch

from headwise.calibrate.subject import ModelSubject
from headwise.lens.sahara import grown, subspace, turned
from headwise.lens.ships import heads_of


def test_angles_are_known_ones() -> None:
    plane, other = torch.eye(4)[:, :2], torch.eye(4)[:, 1:3]
    assert turned(plane, plane) < 1e-3
    assert turned(plane, other) == pytest.approx(math.pi / 2, abs=1e-3)


def test_a_group_grows_by_the_head_that_turns_most(subject: ModelSubject) -> None:
    chance = torch.Generator().manual_seed(0)
    prompts = [torch.randint(2, 512, (1, 9), generator=chance) for _ in range(6)]
    whole = subspace(subject, prompts)
    first, second = grown(subject, prompts, 2)
    alone = {head: turned(whole, subspace(subject, prompts, [head])) for head in heads_of(subject)}
    assert first == max(alone, key=lambda head: alone[head])
    pairs = {head: turned(whole, subspace(subject, prompts, [first, head])) for head in alone if head != first}
    assert second == max(pairs, key=lambda head: pairs[head])
