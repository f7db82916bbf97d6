"""A wrong decoder for each law, on which the law fails."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from headwise.decoders import Decoder
from headwise.errors import HeadwiseError
from headwise.faithful.decoders.decore import Decore
from headwise.faithful.looks import Looks
from headwise.seams.transformers.forward import forward
from tests.contract.faithful.laws import LAWS

RIGHT = Decore(alpha=2.0, named="1.3 2.0 2.7")


@dataclass(frozen=True)
class AlwaysOn(Decore):
    """Contrasts at strength 0 too."""

    def step(self, logits: torch.Tensor, looks: Looks) -> torch.Tensor:
        return replace(RIGHT, alpha=self.alpha + 20.0).step(logits, looks)


@dataclass(frozen=True)
class NotNormalised(Decore):
    """Leaves out the last softmax."""

    def step(self, logits: torch.Tensor, looks: Looks) -> torch.Tensor:
        return super().step(logits, looks) + 0.5


@dataclass(frozen=True)
class ByTheFirstRow(Decore):
    """Lets the first row's entropy weigh all rows."""

    def step(self, logits: torch.Tensor, looks: Looks) -> torch.Tensor:
        own = super().step(logits, looks)
        return own[:1].expand_as(own)


@dataclass(frozen=True)
class Stores(Decore):
    """Looks again by a forward over the cache itself, which it does not take back."""

    def step(self, logits: torch.Tensor, looks: Looks) -> torch.Tensor:
        with torch.no_grad():
            forward(looks.model, looks.cache, looks.ids[:, -1:])
        looks.cache.truncate(looks.ids.shape[1] - 1)
        return super().step(logits, looks)


@dataclass(frozen=True)
class TrustsOldNotes(Decore):
    """Goes by what was noted at some token before."""

    needs = frozenset({"again", "attention"})

    def step(self, logits: torch.Tensor, looks: Looks) -> torch.Tensor:
        seen = bool(looks._queries)
        return super().step(logits, looks) if seen else logits.log_softmax(-1)


@dataclass(frozen=True)
class DoesNothing(Decore):
    """Gives back what it was given."""

    def step(self, logits: torch.Tensor, looks: Looks) -> torch.Tensor:
        return logits.log_softmax(-1)


MUTANTS: dict[str, Decoder] = {
    "neutral_is_greedy": AlwaysOn(named=RIGHT.named),
    "probabilities_sum_to_one": NotNormalised(named=RIGHT.named),
    "rows_are_single_runs": ByTheFirstRow(named=RIGHT.named),
    "the_cache_is_that_of_the_tokens": Stores(named=RIGHT.named),
    "what_is_noted_is_what_is_looked_up": TrustsOldNotes(named=RIGHT.named),
    "strength_changes_something": DoesNothing(named=RIGHT.named),
}


def test_every_law_has_a_mutant() -> None:
    assert MUTANTS.keys() == LAWS.keys()


@pytest.mark.parametrize("law", LAWS)
def test_a_law_fails_on_its_mutant_and_not_beside_it(law: str) -> None:
    LAWS[law](RIGHT, replace(RIGHT, alpha=0.0), "")
    wrong = MUTANTS[law]
    with pytest.raises((AssertionError, HeadwiseError)):
        LAWS[law](wrong, replace(wrong, alpha=0.0), "")
