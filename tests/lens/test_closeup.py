"""What is lost without heads, one alone and the best of a lens together."""

from __future__ import annotations

import pytest
import torch

from headwise.calibrate.subject import ModelSubject
from headwise.lens import Scene, Text
from headwise.lens.closeup import broken, broken_together


def none(done: int, total: int) -> None:
    """No progress is told."""


def test_the_best_heads_together_are_those_of_the_highest_figures(
    subject: ModelSubject, text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(subject, text)
    figures = torch.arange(12.0).view(3, 4)
    figures[2, 3] = torch.nan  # a head that is not there
    found = broken_together(scene, {"some": figures}, none)["some"]
    alone = broken(scene, [(2, 2)], none)["2.2"]
    assert found["heads"] == ["2.2"] and found["loss"] == alone["loss"] and found["hurt"] == alone["hurt"]
    assert found["others"] == 1 and found["others_loss"] != found["loss"]
    monkeypatch.setattr("headwise.lens.closeup.SHARE", 0.5)
    more = broken_together(scene, {"some": figures}, none)["some"]
    assert set(more["heads"]) == {"2.2", "2.1", "2.0", "1.3", "1.2", "1.1"}
    assert more["others"] == 1, "layer 2 has no others, layer 1 has one"


def test_without_no_head_nothing_is_lost(subject: ModelSubject, text: Text) -> None:
    figures = torch.full((3, 4), torch.nan)
    figures[0, 0] = 1.0
    found = broken_together(Scene(subject, text), {"some": figures}, none)["some"]
    assert found["others"] == 0 and found["others_loss"] == 0.0
