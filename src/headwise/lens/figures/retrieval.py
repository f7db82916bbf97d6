"""Who looks into the needle while it is said again."""

from __future__ import annotations

import torch

from headwise.calibrate.measures.retrieval import retrieval_scores
from headwise.calibrate.subject import model_of
from headwise.lens.scene import Scene
from headwise.lenses import LensCard, Progress, model_lens

CARD = LensCard(
    title="retrieval",
    tells="looks at the very token of a planted fact that the model is about to say: it fetches from the document",
    range="0 to 1, the share of answer tokens at whose saying it does",
    paper="Retrieval Head Mechanistically Explains Long-Context Factuality, arXiv 2404.15574, section 2",
    systems=(123,),
    deviations="answers are given and not sampled; layers with sliding windows refuse it",
)


@model_lens("retrieval", CARD)
def retrieval(scene: Scene, progress: Progress) -> torch.Tensor:
    """The retrieval score of every head, of the scene's recalls."""
    return retrieval_scores(model_of(scene.subject), scene.recalls).flatten(1)
