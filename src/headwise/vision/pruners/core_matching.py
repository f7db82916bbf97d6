"""CoreMatching (Wang et al. 2025): image tokens whose active neurons are those of the text stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.knobs import Positive
from headwise.pruners import Pruner, PrunerCard, register
from headwise.vision.seen import Seen


@register("core_matching")
@dataclass(frozen=True)
class CoreMatching(Pruner):
    """layer: of the decoder, before which image tokens leave whose active neurons the text shares least. elbow: how far
    down the curve of sorted scores its threshold lies, as a multiple of the elbow's place; a large one keeps all."""

    layer: Positive = 2
    elbow: Positive = 1

    card = PrunerCard(
        "Keeps image tokens that share most active feed-forward neurons with the last token, to the curve's elbow",
        "CoreMatching: A Co-adaptive Sparse Inference Framework with Token and Neuron Pruning, ICML 2025, arXiv "
        "2505.19235, section 3",
        "tokens leave the prompt before one layer, as the paper says; the released code zeroes their keys and values "
        "in 15 layers and computes all of them. The core is what the prompt's last token activates; the released code "
        "takes the fifth token from the end. Active means above 0, as there",
        (267,),
        "decoding by core neurons alone",
    )
    everything = "core_matching(elbow=1000)"

    def stay(self, seen: Seen) -> torch.Tensor | None:
        if seen.layer != self.layer:
            return None
        assert seen.now.neurons is not None, "it stands behind a layer"
        scores = shared(seen.now.neurons, seen.image)
        order = scores.argsort(descending=True, stable=True)
        last = self.elbow * max(1, elbow(scores[order]))
        if last >= len(scores) - 1:
            return None
        return scores >= scores[order[last]]


def shared(neurons: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """How many active neurons each image token shares with the last token: float [images], of neurons [n, m]."""
    active = (neurons > 0).float()
    return active[image] @ active[-1]


def elbow(curve: torch.Tensor) -> int:
    """The place on a falling curve [n] that is farthest from the chord between its ends."""
    n = len(curve)
    if n < 3 or curve[0] == curve[-1]:
        return n - 1
    x = torch.arange(n, dtype=torch.float64)
    across, down = float(n - 1), float(curve[-1] - curve[0])
    distance = (down * x - across * (curve.double() - float(curve[0]))).abs()
    return int(distance.argmax())
