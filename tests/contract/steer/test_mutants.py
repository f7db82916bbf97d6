"""The laws of steering bite: each fails on a method that breaks it."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from headwise.attention.view import View
from headwise.forms import Edit, Raised
from tests.contract.mutants import Mutant, Verb, instead, planted
from tests.contract.steer import test_laws

LESS = 0.9


@dataclass(frozen=True, eq=False)
class Silent(Edit):
    """Hides everything."""

    def change(self, s: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        return torch.full_like(s, -torch.inf)


def edited(change: Callable[[View, Raised], Edit]) -> Callable[[Verb], Verb]:
    """Changes what was to be raised, where something was."""

    def spoilt(verb: Verb) -> Verb:
        def edit(self: Any, view: View, group: int) -> Edit | None:
            found = verb(self, view, group)
            return None if found is None else change(view, found)

        return edit

    return spoilt


def by_calls() -> Callable[[View, Raised], Edit]:
    """Raises more each time that it is asked, in any session."""
    calls = itertools.count(1)
    return lambda view, own: replace(own, by=own.by / next(calls))


def raising(factor: Callable[[View], float]) -> dict[str, Callable[[Any], Any]]:
    """Raises by another number."""
    return {"edit": edited(lambda view, own: replace(own, by=own.by * factor(view)))}


MUTANTS = {
    "test_at_rest_it_is_bit_equal_to_no_steering": Mutant(
        "pasta",
        {
            "neutral": instead(property(lambda self: False)),
            "edit": instead(
                lambda self, view, group: Raised(self.steered(view, group), self.marked(view, self.kind), 0.1)
            ),
        },
        {"beside": ""},
    ),
    "test_heads_that_are_not_named_are_bit_equal": Mutant(
        "pasta", {"steered": instead(lambda self, view, group: torch.ones(len(view.heads), group, dtype=torch.bool))}
    ),
    "test_weights_of_keys_that_are_not_named_keep_their_ratios": Mutant(
        "pasta", {"edit": edited(lambda view, own: replace(own, keys=own.keys.roll(1, 1)))}
    ),
    "test_rows_sum_to_1": Mutant("pasta", {"edit": edited(lambda view, own: Silent(own.heads))}),
    "test_it_equals_whole_matrices_in_blocks_of_any_size": Mutant("pasta", raising(lambda view: LESS)),
    "test_new_tokens_are_steered_among_what_is_kept_and_read": Mutant(
        "pasta", raising(lambda view: LESS if view.phase == "decode" else 1.0), {"beside": ""}
    ),
    "test_a_padded_batch_equals_its_rows_alone": Mutant("pasta", {"edit": edited(by_calls())}),
    "test_a_prompt_in_pieces_equals_one_pass": Mutant("pasta", raising(lambda view: LESS if view.count < 20 else 1.0)),
    "test_forks_and_saved_sessions_go_on_alike": Mutant("pasta", {"edit": edited(by_calls())}),
    "test_nothing_changes_before_the_first_mark": Mutant(
        "pasta", {"marked": instead(lambda self, view, kind: view.positions % 2 == 0)}
    ),
}


def laws() -> dict[str, Callable[..., None]]:
    """The laws, by name."""
    found = {name: one for name, one in vars(test_laws).items() if inspect.isfunction(one)}
    return {name: one for name, one in found.items() if name.startswith("test_")}


def test_every_law_has_a_mutant() -> None:
    assert set(MUTANTS) == set(laws())


@pytest.mark.parametrize("name", MUTANTS)
def test_a_law_lets_the_method_pass_and_fails_on_the_mutant(name: str, tmp_path: Path) -> None:
    law, mutant = laws()[name], MUTANTS[name]

    def judge() -> None:
        with pytest.MonkeyPatch.context() as patch:
            known: dict[str, Any] = {"name": mutant.method, "tmp_path": tmp_path, "monkeypatch": patch}
            law(**{one: (known | dict(mutant.case))[one] for one in inspect.signature(law).parameters})

    judge()
    with planted(mutant), pytest.raises(mutant.error):
        judge()
