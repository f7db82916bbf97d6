"""DyVTE (Wu et al. 2024): a small router says after which layer the image is not needed any more."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from headwise.errors import HeadwiseError
from headwise.files import copied, read_tensors
from headwise.knobs import Share
from headwise.pruners import Pruner, PrunerCard, register
from headwise.vision.seen import Seen

FORM = "exit router"
FIX = "train one for this model with `headwise vision router FILE`"


class Facts(BaseModel):
    """What a router's file says: of which model it is, and how it was trained."""

    model_config = ConfigDict(extra="forbid")

    model: str
    questions: int
    positive: float


class Router(nn.Module):
    """Two layers on the mean state of text beside that of the last token: two logits, stay and leave."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2 * width, hidden), nn.Linear(hidden, 2)

    def forward(self, told: Tensor) -> Tensor:
        """told [..., 2 width] -> [..., 2]."""
        logits: Tensor = self.second(nn.functional.gelu(self.first(told)))
        return logits


@register("dyvte")
@dataclass(frozen=True)
class DyVte(Pruner):
    """router: the file of a trained router. sure: the probability of leaving above which the image leaves."""

    router: str = ""
    sure: Share = 0.5

    card = PrunerCard(
        "Lets all image tokens leave before the first layer at which a router says that they are not needed",
        "Accelerating Multimodal Large Language Models via Dynamic Visual-Token Exit and the Empirical Findings, arXiv "
        "2411.19628, section 3",
        "one router for all layers and no adapter; it is asked at each layer from the second on. `sure` is a knob, "
        "where the paper takes the larger logit (0.5)",
        (262,),
    )
    everything = "dyvte(sure=1.0)"

    def stay(self, seen: Seen) -> Tensor | None:
        if not seen.layer or self.sure == 1:
            return None
        router = _router(self.router)
        with torch.no_grad():
            leaves = router(told(seen.now.states, seen.image)).softmax(-1)[1]
        return torch.zeros(len(seen.places), dtype=torch.bool) if float(leaves) > self.sure else None


def told(states: Tensor, image: Tensor) -> Tensor:
    """What a router is told of states [n, width]: the mean of those that are no image's, and the last: [2 width]."""
    return torch.cat((states[~image].mean(0), states[-1]))


@cache
def _router(path: str) -> Router:
    """The router of a file."""
    if not path:
        raise HeadwiseError(f"dyvte: no router was named; {FIX}, and give dyvte('FILE')")
    _, tensors = read_tensors(Path(path), FORM, Facts, HeadwiseError)
    own = copied(tensors)
    router = Router(own["first.weight"].shape[1] // 2, own["first.weight"].shape[0])
    router.load_state_dict(own)
    return router
