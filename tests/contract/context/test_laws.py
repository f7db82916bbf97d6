"""Every arranger keeps the laws, and each law catches an arranger that does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch

from headwise.arrangers import ARRANGERS, Arranger
from headwise.context import Arranged, Asked
from headwise.systems import systems
from tests.contract.context import cases

NAMES = list(ARRANGERS.all())


@pytest.mark.parametrize("law", cases.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_law(name: str, law: Callable[[Arranger], None]) -> None:
    law(cases.made(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_what_readers_need(name: str) -> None:
    cls = ARRANGERS.get(name)
    assert cls.name == name and all((cls.card.title, cls.card.paper, cls.card.passes, cls.card.deviations))
    assert set(cls.card.systems) <= {one.number for one in systems()}
    assert all(one.name in (cls.__doc__ or "") for one in fields(cls)), "every knob is described"  # type: ignore[arg-type]


def _twice(asked: Asked, calls: int) -> Arranged:
    return asked.arranged([0, 0])


def _other_words(asked: Asked, calls: int) -> Arranged:
    return replace(asked.arranged([0]), documents=("Something else.",))


def _nothing(asked: Asked, calls: int) -> Arranged:
    return replace(asked.arranged([0]), documents=(asked.documents[0].upper(),))


def _remembers_once(asked: Asked, calls: int) -> Arranged:
    places = range(len(asked.documents))
    return asked.arranged(places if calls == 1 else places[::-1])


def _changes(asked: Asked, calls: int) -> Arranged:
    model, _ = cases.pair()
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    return asked.arranged([0])


def _endless(asked: Asked, calls: int) -> Arranged:
    return asked.arranged([0], {0: float("nan")})


def _other_wording(asked: Asked, calls: int) -> Arranged:
    return replace(asked.arranged([0]), question="Another?")


MUTANTS: dict[str, Callable[[Asked, int], Arranged]] = {
    "parts_of_what_came_in": _twice,
    "one_document_is_left_alone": _nothing,
    "the_same_whatever_was_asked_before": _remembers_once,
    "the_model_is_what_it_was": _changes,
    "scores_are_of_documents": _endless,
    "the_prompt_holds_what_came_out": _other_wording,
}


@pytest.mark.parametrize("law", cases.LAWS, ids=lambda law: law.__name__)
def test_each_law_catches_a_mutant(law: Callable[[Arranger], None]) -> None:
    model, _ = cases.pair()
    kept = model.lm_head.weight.detach().clone()
    try:
        with pytest.raises(AssertionError):
            law(cases.Mutant(MUTANTS[law.__name__]))
    finally:
        with torch.no_grad():
            model.lm_head.weight.copy_(kept)


def test_other_words_are_caught_too() -> None:
    with pytest.raises(AssertionError):
        cases.parts_of_what_came_in(cases.Mutant(_other_words))
