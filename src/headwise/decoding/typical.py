"""Medusa's typical acceptance: a guess stays where it is likely enough, so that what is written changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from headwise.decoding.base import Distribution
from headwise.decoding.verify import Verifier
from headwise.errors import RecipeError, shorten
from headwise.knobs import Knobs, Share, Weight
from headwise.registry import with_settings
from headwise.sentence import read_call

EXAMPLE = 'write "exact" or "typical(epsilon=0.09, delta=0.3)"'


@dataclass(frozen=True)
class Typical(Knobs):
    """Which guesses stay (Cai et al., Medusa, arXiv 2401.10774, section 2.3.1): those whose probability is above
    min(epsilon, delta exp(-entropy)) of the model's own distribution. Lossy: what stays is not drawn."""

    name: ClassVar[str] = "typical"

    epsilon: Share = 0.09
    delta: Weight = 0.3

    def __str__(self) -> str:
        return f"typical(epsilon={self.epsilon}, delta={self.delta})"

    def takes(self, wanted: torch.Tensor, token: int) -> bool:
        """Whether a guess stays where the model would draw by `wanted [vocab]`."""
        entropy = torch.special.entr(wanted).sum()
        return float(wanted[token]) > min(self.epsilon, self.delta * float(torch.exp(-entropy)))


def acceptance(sentence: str) -> Typical | None:
    """What "exact" or "typical(epsilon=0.09, delta=0.3)" names; None for exact."""
    call = read_call(sentence, EXAMPLE)
    if call.name == Typical.name:
        made: Typical = with_settings(Typical, call)
        return made
    if sentence.strip() != "exact":
        raise RecipeError(f"there is no acceptance '{shorten(sentence)}'; {EXAMPLE}")
    return None


def taken(
    verifier: Verifier, row: int, wanted: torch.Tensor, typical: Typical, ids: torch.Tensor, how: Distribution
) -> int | None:
    """The next token of a row: the first one of the longest path of guesses that all stay; None where none does.

    wanted: [vocab], by which the model would draw it after ids [1, n]; how: the same of any logits.
    """

    def longest(place: int, by: torch.Tensor, text: torch.Tensor) -> tuple[int, int | None]:
        """How many guesses stay behind a place of the pass, and the token of the first of them."""
        best: tuple[int, int | None] = (0, None)
        for node, parent in enumerate(verifier.tree.parents):
            token = int(verifier.pass_ids[row, node])
            if parent == place and typical.takes(by, token):
                longer = torch.cat((text, text.new_tensor([[token]])), dim=1)
                behind = longest(node, how(longer, verifier.logits[row : row + 1, node])[0], longer)
                if behind[0] + 1 > best[0]:  # of paths as long the best guess, which comes first
                    best = behind[0] + 1, token
        return best

    return longest(verifier.path[-1], wanted, ids)[1] if verifier.drafts else None
