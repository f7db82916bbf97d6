"""A claim: what a row of the list of systems promises of a method, with all that could refute it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from headwise.errors import HeadwiseError
from headwise.recipe import Recipe
from headwise.rooms import Room
from headwise.systems import systems

Equal = Literal["bytes held", "pairs", "tokens read"]
Asked = Literal["after", "before", "along"]
CONTROLS = ("random", "sinks and recent", "simpler", "idea off")
FITTED = {"{share}": "0.5", "{count}": "8"}  # in a sentence: the number that is fitted until both sides cost the same


@dataclass(frozen=True)
class Claim:
    """What is claimed of `method`, a recipe, for a `row` of the list of systems, on every one of `hosts`.

    says: the promise, in one sentence. equal: what method and controls spend alike, measured: bytes of cache held after
    the prompt, (query, key) pairs computed in the prompt, or tokens read by new tokens.
    asked: when a question comes: "after" the document was read and evicted from, "before" eviction, as one prompt with
    the document, or "along": all questions with their true answers stand in the prompt, each answered from there.
    controls: a recipe for each of CONTROLS, with `{share}` (above 0, at most 1) or `{count}` (a whole number) in it
    where it is fitted to the method's cost. "simpler" is the nearest simpler method with knobs that suit it, "idea off"
    the method without its own idea.
    keeps: the least share of dense attention's right answers that the method has to give.
    tried: the method with other knobs, such as its paper's defaults, which are measured and shown beside it; nothing is
    judged by them.
    leaves_out: what of the row it does not claim; what leaves something out is shown in part at most.
    at: for a method with an open number, the share of dense attention's cost that the number is fitted to on each host;
    a number of tokens or blocks means different things on hosts of different lengths.
    """

    row: int
    says: str
    method: str
    hosts: tuple[str, ...]
    equal: Equal
    asked: Asked
    controls: Mapping[str, str]
    keeps: float = 0.0
    at: float | None = None
    tried: tuple[str, ...] = ()
    leaves_out: str = ""

    def __post_init__(self) -> None:
        if self.row not in {one.number for one in systems()}:
            raise HeadwiseError(f"there is no row {self.row}: see `headwise systems`")
        if missing := [kind for kind in CONTROLS if kind not in self.controls]:
            raise HeadwiseError(f"row {self.row}, {self.method}: the claim leaves out the control '{missing[0]}'")
        if unknown := sorted(set(self.controls) - set(CONTROLS)):
            raise HeadwiseError(f"row {self.row}: '{unknown[0]}' is no control; there are {', '.join(CONTROLS)}")
        if not self.hosts:
            raise HeadwiseError(f"row {self.row}, {self.method}: name at least one host")
        if not 0 <= self.keeps <= 1:
            raise HeadwiseError(f"row {self.row}: keeps={self.keeps} is no share of answers; give 0 to 1")
        if (self.at is not None) != is_open(self.method):
            raise HeadwiseError(f"row {self.row}, {self.method}: `at={self.at}` goes with an open number, and no other")
        if self.at is not None and not 0 < self.at <= 1:
            raise HeadwiseError(f"row {self.row}: at={self.at} is no share of dense attention's cost; give 0 to 1")
        for sentence in (self.method, *self.controls.values(), *self.tried):
            Recipe.parse(filled(sentence))

    @property
    def name(self) -> str:
        """The row and the recipe."""
        return f"{self.row} {self.method}"

    def facts(self) -> dict[str, Any]:
        """The claim as plain JSON data."""
        return asdict(self) | {"controls": dict(self.controls)}


def is_open(sentence: str) -> bool:
    """Whether a number of the sentence is to be found."""
    return any(place in sentence for place in FITTED)


def filled(sentence: str) -> str:
    """The sentence with numbers in the places of those that are fitted, so that it can be read."""
    for place, some in FITTED.items():
        sentence = sentence.replace(place, some)
    return sentence


CLAIMS: Room[Claim] = Room("claim", "headwise.claims.rows")


def claim(one: Claim) -> Claim:
    """Make a claim known; a file of `claims/rows/` calls this for each."""
    CLAIMS.add(one.name, one)
    return one
