"""AttnRank (Yi et al. 2025, arXiv 2508.05128): the best documents go where the model looks whatever stands there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headwise.arrangers import Arranger, ArrangerCard, register
from headwise.context.asked import Arranged, Asked
from headwise.context.ranker import ranked
from headwise.context.shipped import Profile, measured
from headwise.errors import HeadwiseError

FIX = "measure it with `headwise context measure MODEL --slots {} --profile FILE` and give attn_rank('FILE')"


@register("attn_rank")
@dataclass(frozen=True)
class AttnRank(Arranger):
    """profile: a file of `headwise context measure`; the one that ships where none is named."""

    card = ArrangerCard(
        "Puts the documents, given the best first, into the slots that are attended to most, the best into the first",
        "Attention Basin: Why Contextual Position Matters in Large Language Models, 2508.05128, section 4",
        "none; a few dozen once for a model and a number of slots",
        "there is no official code; a slot's attention is that of all tokens of the question in all layers, measured "
        "on made-up passages that are moved through all slots, so that what stands there cancels",
        (218,),
    )
    profile: str = ""

    def arrange(self, asked: Asked) -> Arranged:
        model, _ = asked.needs("attn_rank")
        fix = FIX.format(len(asked.documents))
        found = measured(Profile, self.profile, model, fix)
        if len(asked.documents) not in found.slots:
            known = ", ".join(map(str, sorted(found.slots)))
            raise HeadwiseError(
                f"the slots of {len(asked.documents)} documents were not measured, those of {known} were; {fix}"
            )
        return asked.arranged(placed(found.slots[len(asked.documents)]))


def placed(profile: Sequence[float]) -> list[int]:
    """For every slot, the place among documents given the best first: of all orders, that of the highest sum of
    relevance times attention, for any relevance that falls (the rearrangement inequality)."""
    order = [0] * len(profile)
    for place, slot in enumerate(ranked(profile)):
        order[slot] = place
    return order
