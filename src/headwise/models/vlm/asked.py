"""What is asked about a picture, as words, and the one tokenizer of these."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from headwise.models.vlm.scenes import COLOURS, MOST, PATCHES, SHAPES, Scene, partner

QUARTERS = ("top-left", "top-right", "bottom-left", "bottom-right")
BOS, EOS, PAD, IMAGE = "<bos>", "<eos>", "<pad>", "<image>"
NUMBERS = tuple(map(str, range(MOST + 1)))
PLAIN = (
    "is",
    "there",
    "a",
    "what",
    "colour",
    "the",
    "how",
    "many",
    "where",
    "which",
    "has",
    "dot",
    "describe",
    "?",
    ";",
)
WORDS = (BOS, EOS, PAD, IMAGE, "yes", "no", *PLAIN, *NUMBERS, *SHAPES, *COLOURS, *QUARTERS)
IDS = {word: number for number, word in enumerate(WORDS)}
KINDS = ("presence", "colour", "count", "where", "dot")  # of one word; "describe" is answered by a list


@dataclass(frozen=True)
class Question:
    """A question about a scene. answer: its words. shape: what it is about, if it is about one shape."""

    kind: str
    text: str
    answer: str
    shape: int | None = None

    @property
    def ids(self) -> list[int]:
        """The ids of the question."""
        return [IDS[word] for word in self.text.split()]

    @property
    def answer_ids(self) -> list[int]:
        """The ids of the answer."""
        return [IDS[word] for word in self.answer.split()]


def question(kind: str, scene: Scene, rng: np.random.Generator) -> Question:
    """A question of a kind about a scene, drawn by `rng`. Half of those for presence are of absent shapes."""
    here = [one.shape for one in scene.things]
    one = scene.things[int(rng.integers(len(here)))]
    name = SHAPES[one.shape]
    if kind == "presence":
        return presence(scene, one.shape if rng.random() < 0.5 else _absent(here, rng))
    if kind == "colour":
        return Question(kind, f"what colour is the {name} ?", COLOURS[one.colour], one.shape)
    if kind == "count":
        colour = one.colour if rng.random() < 0.8 else int(rng.integers(len(COLOURS)))
        return Question(kind, f"how many {COLOURS[colour]} ?", str(sum(x.colour == colour for x in scene.things)))
    if kind == "where":
        return Question(kind, f"where is the {name} ?", QUARTERS[one.quarter], one.shape)
    if kind == "dot":
        dotted = next(x for x in scene.things if x.dotted)
        return Question(kind, "which has a dot ?", SHAPES[dotted.shape], dotted.shape)
    told = " ".join(f"{COLOURS[x.colour]} {SHAPES[x.shape]}" for x in scene.things)
    return Question("describe", "describe ?", told)


def presence(scene: Scene, shape: int) -> Question:
    """Whether a shape is in a scene."""
    return Question("presence", f"is there a {SHAPES[shape]} ?", "no" if scene.of(shape) is None else "yes", shape)


def lonely(scene: Scene) -> int | None:
    """A shape that is absent although its partner is there: the one that habit expects; None: there is none."""
    here = {one.shape for one in scene.things}
    return next((partner(shape) for shape in sorted(here) if partner(shape) not in here), None)


def _absent(here: list[int], rng: np.random.Generator) -> int:
    """A shape that is not there."""
    return int(rng.choice([shape for shape in range(len(SHAPES)) if shape not in here]))


def opening() -> list[int]:
    """What each prompt begins with: the image's places, after the first token."""
    return [IDS[BOS], *[IDS[IMAGE]] * PATCHES]


def tokenizer() -> Tokenizer:
    """A token a word."""
    made = Tokenizer(models.WordLevel(dict(IDS), unk_token=PAD))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made
