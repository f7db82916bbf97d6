"""The sentence that says what an attention layer is: `project | position | pattern | score | normalise |
mix | out`.

`LayerSentence.parse("gqa(2) | rope")`. What is missing is that of plain multi-head attention; a mix brings what its
paper has it with (`Mix.usual`), so that "kda" is the whole layer of its paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headwise.errors import RecipeError, shorten, shown
from headwise.layer_parts import LAYER_PARTS, SLOTS, build_part
from headwise.layers.attend import Attend
from headwise.layers.base import Dims, LayerPart, Mix, Out, Project
from headwise.layers.pairs import Normalise, Position, Score
from headwise.layers.patterns import Pattern
from headwise.layers.sparse_attend import SparseAttend
from headwise.sentence import Call, phrase, read_calls, read_pattern

EXAMPLE = 'write it like "gqa(2) | rope" or "kda"'
PATTERN = 'write it like "3*kda, mla(rank=64)"'
VERBS = {"pattern": "choose", "score": "score", "normalise": "weigh"}  # what parts do to pairs of tokens
PLAIN = {"project": "heads", "position": "nope", "score": "dot", "normalise": "softmax", "out": "linear_out"}


@dataclass(frozen=True)
class LayerSentence:
    """A part of each slot or None. Parts are the frozen objects of `headwise.layers`."""

    project: Project | None = None
    position: Position | None = None
    pattern: Pattern | None = None
    score: Score | None = None
    normalise: Normalise | None = None
    mix: Mix | None = None
    out: Out | None = None

    def __post_init__(self) -> None:
        for slot in SLOTS:
            part = getattr(self, slot)
            if part is not None and (not isinstance(part, LayerPart) or part.part != slot):
                raise RecipeError(f"{shown(part)} is no {slot} part of a layer; {EXAMPLE}")
        if self.mix is not None:
            self._check_mix(self.mix)

    def _check_mix(self, mix: Mix) -> None:
        """Refuse what a running state cannot take."""
        for part in (self.pattern, self.score, self.normalise):
            if part is not None:
                raise RecipeError(
                    f"'{mix.name}' reads a running state, in which there are no pairs of tokens that '{part.name}' "
                    f"could {VERBS[part.part]}; leave one of the two out"
                )
        position = self.full["position"]
        if position.adds:
            raise RecipeError(
                f"'{position.name}' adds to the score of a pair, and '{mix.name}' reads a running state, in which "
                "there are no pairs; leave it out, or take a position that turns queries and keys, such as rope"
            )
        if position.turns and not mix.turns:
            raise RecipeError(
                f"'{position.name}' turns queries and keys, and the features that '{mix.name}' makes of them would no "
                "longer tell their distance; leave it out"
            )

    @classmethod
    def parse(cls, text: str) -> LayerSentence:
        """Read a sentence; `""` is plain multi-head attention. Raises RecipeError naming the word and the fix."""
        if not isinstance(text, str):
            raise RecipeError(f"{shown(text)} is no layer; {EXAMPLE}")
        return cls() if not text.strip() else cls.of(read_calls(text, EXAMPLE))

    @classmethod
    def of(cls, calls: list[Call]) -> LayerSentence:
        """The sentence of these calls, in any order."""
        parts: dict[str, Any] = {}
        for call in calls:
            part = build_part(call)
            if part.part in parts:
                raise RecipeError(
                    f"'{part.name}' and '{parts[part.part].name}' are both {part.part} parts; a layer has at most one "
                    "of each slot"
                )
            parts[part.part] = part
        return cls(**parts)

    @property
    def parts(self) -> tuple[LayerPart, ...]:
        """The parts that are named, in the order of the slots."""
        return tuple(part for slot in SLOTS if (part := getattr(self, slot)) is not None)

    @property
    def full(self) -> dict[str, Any]:
        """A part for every slot, those that are not named as well; a mix leaves score and normalisation None."""
        usual = read_calls(self.mix.usual, EXAMPLE) if self.mix is not None and self.mix.usual else []
        known = {part.part: part for part in (*map(build_part, usual), *self.parts)}
        pairs = ("score", "normalise") if self.mix is not None else ()
        plain = {slot: LAYER_PARTS[slot].get(name)() for slot, name in PLAIN.items() if slot not in (*known, *pairs)}
        return dict.fromkeys(SLOTS) | plain | known

    @property
    def reader(self) -> Mix:
        """What reads the tokens before: the mix, or attention over pairs by the score and the normalisation."""
        full = self.full
        pairs = (full["position"], full["score"], full["normalise"])
        sparse = None if full["pattern"] is None else SparseAttend(*pairs, full["pattern"])
        return full["mix"] or sparse or Attend(*pairs)

    def state_bytes(self, dims: Dims, tokens: int, element: int) -> int:
        """Bytes of a layer's state after `tokens` tokens of one sequence, at `element` bytes an element."""
        project: Project = self.full["project"]
        own = project.state_bytes(dims, element) + tokens * project.token_bytes(dims, element)
        return own + self.reader.state_bytes(project.shape(dims), tokens, element)

    def __str__(self) -> str:
        return " | ".join(phrase(part) for part in self.parts) or "heads"


def read_sentences(text: str) -> list[LayerSentence]:
    """The sentences of a pattern as it is written, not repeated."""
    if not isinstance(text, str):
        raise RecipeError(f"{shown(text)} is no pattern of layers; {PATTERN}")
    return [one for times, calls in read_pattern(text, PATTERN) for one in [LayerSentence.of(calls)] * times]


def parse_pattern(text: str, layers: int) -> tuple[LayerSentence, ...]:
    """The sentences of all layers, of a pattern that is repeated: `"3*kda, mla(rank=64)"` of 8 layers comes twice.

    Raises RecipeError where the number of layers is no multiple of the pattern's.
    """
    found = read_sentences(text)
    if layers % len(found):
        raise RecipeError(
            f"'{shorten(text)}' is a pattern of {len(found)} layers, of which {layers} are no multiple; give a "
            f"multiple of {len(found)} layers"
        )
    return tuple(found * (layers // len(found)))
