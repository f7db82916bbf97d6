"""The ways in which windows of a masked-diffusion language model are filled that papers stand for: their cards.

Declared here, below methods and models, so that lists name them; what they do is in `decoding/diffusion/`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FillerCard:
    """What a way of filling does, for people. paper: title, number, section. deviations: where it differs from the
    paper or its code. systems: rows of the list of published systems that it stands for, or for a part of."""

    title: str
    paper: str
    deviations: str
    systems: tuple[int, ...]


@dataclass(frozen=True)
class Filler:
    """A way of filling that has a card."""

    card: FillerCard


HOST = "the model reads what is written causally, and its windows end some tokens after a block, where LLaDA has all " \
    "tokens see all; so keys that are used again are exact"  # fmt: skip
FILLERS = {
    "self_speculation": Filler(
        FillerCard(
            "Self Speculative Decoding for Diffusion Large Language Models",
            "arXiv 2510.04147, section 3: Filling(drafts=N)",
            f"the state without any draft is not scored again, as the look before has done it; {HOST}",
            (146,),
        )
    ),
    "adaptive_blocks": Filler(
        FillerCard(
            "AdaBlock-dLLM: Semantic-Aware Diffusion LLM Inference via Adaptive Block Size",
            "arXiv 2509.26432, algorithm 1: Adaptive(delimiter, size)",
            f"no temperature; {HOST}",
            (162,),
        )
    ),
    "levels": Filler(
        FillerCard(
            "SoundStorm: Efficient Parallel Audio Generation",
            "arXiv 2305.09636, section 3.3: fill_levels(guess, codes, mask, rounds)",
            "the order in which codes are filled alone: no Conformer and no sound; codes are drawn by the model's "
            "probabilities with no temperature of their own",
            (132,),
        )
    ),
}
