"""Every law on every registered pruner, and on a wrong one for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
import torch

from headwise.pruners import PRUNERS, Pruner
from headwise.vision.pruners.fastv import FastV
from tests.contract.pruners.laws import LAWS, NAMES, made, model


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_law(name: str, law: Callable[[Pruner], None]) -> None:
    law(made(name))


@dataclass(frozen=True)
class Wrong(FastV):
    """FastV that does wrong, as `how` says."""

    how: Any = None

    def stay(self, seen: Any) -> torch.Tensor | None:
        return self.how(super().stay(seen), seen)


def told_wrong(wrong: Wrong) -> Wrong:
    """Says that all stay."""
    return type("Told", (Wrong,), {"counts": lambda self, images, layers: [images] * layers})(how=wrong.how)


def spoils(own: Any, seen: Any) -> Any:
    """Changes the model."""
    model().get_output_embeddings().weight.data.mul_(1.001)
    return own


calls = count()


def turned(own: Any, seen: Any) -> Any:
    """Another choice at each call."""
    return None if own is None else own.roll(next(calls))


def moves_states(own: Any, seen: Any) -> Any:
    """Changes what goes into the next layer."""
    if own is not None:
        seen.now.states.mul_(1.1)
    return own


MUTANTS: dict[str, Any] = {
    "leaving_is_being_hidden": Wrong(how=moves_states),
    "it_takes_what_was_predicted": told_wrong(Wrong(how=lambda own, seen: own)),
    "something_is_left_out": Wrong(how=lambda own, seen: None),
    "the_same_again": Wrong(how=turned),
    "the_model_is_what_it_was": Wrong(how=spoils),
}


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_a_law_fails_on_its_mutant(law: Callable[[Pruner], None], monkeypatch: pytest.MonkeyPatch) -> None:
    if law.__name__ == "everything_is_the_model":  # its setting is a sentence, so that a wrong one is planted
        wrong = type("Half", (FastV,), {"everything": "fastv(keep=0.5)"})()
    else:
        wrong = MUTANTS[law.__name__]
    weight = model().get_output_embeddings().weight.data.clone()
    with pytest.raises(AssertionError):
        law(wrong)
    model().get_output_embeddings().weight.data.copy_(weight)


def test_every_card_says_what_its_pruner_does() -> None:
    for cls in PRUNERS.all().values():
        assert cls.card.title and cls.card.paper and cls.__doc__
