"""What pruners, edits and decoders of images show of the rows of the list that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from headwise.findings import Finding, Part, as_data
from headwise.report.findings import measured

DENSE = "as it is"
LEAST_LOSS = -0.01  # of right answers to ordinary questions, which a cure is to leave alone
Row = dict[str, Any]


@dataclass(frozen=True)
class Stated:
    """What is said of an arm. row: of the list. task: where habit misleads, for what is to cure that."""

    row: int
    arm: str
    says: str
    task: str = ""
    leaves_out: str = ""


CURES = (
    Stated(52, "paint(0.9)", "Raised scores of the image's local tokens make a model see what habit expects less often",
           "invented", "captions"),
    Stated(71, "var", "Weight taken from sinks and given to the rest of the image makes a model see what habit expects "
           "less often", "invented"),
    Stated(147, "conscious_gaze", "Attention moved to the image where both modalities are needed makes a model see "
           "what habit expects less often", "invented", "captions, and what they lose in fluency"),
    Stated(80, "damro", "Less what is said of the background's outliers alone, a model sees what habit expects less "
           "often", "invented", "captions"),
    Stated(136, "causalmm", "Less what is said with attention made even, a model says what habit says less often",
           "repainted"),
)  # fmt: skip
PRUNED = (
    Stated(115, "vtc_cls(keep=0.25)", "The quarter of the image tokens that the encoder's [CLS] token attends to "
           "answers as all of them do"),
    Stated(262, "dyvte", "A router lets the image leave where nothing more is needed of it, and saves 30 % of the "
           "prompt's pairs"),
    Stated(267, "core_matching", "Image tokens that share most active neurons with the question hold what it asks "
           "about", leaves_out="decoding by core neurons alone"),
    Stated(89, "zero_tprune(keep=0.6)", "Image tokens that a page rank on the encoder's attention finds important, and "
           "that no other stands for, answer as all of them do",
           leaves_out="leaving between the layers of a ViT that classifies"),
)  # fmt: skip


def findings(found: dict[str, Any], asked: str, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Of a set of a result of `headwise vision judge`. facts: command, machine and date."""
    stated, parts = (CURES, _cured) if asked == "steered" else (PRUNED, _kept)
    host = f"the small vision-language model of `make vlm`, {found['questions']} questions a task"
    host += " that habit answers wrongly" if asked == "steered" else ""
    made = []
    for one in stated:
        rows = {row["task"]: row for row in found[asked] if row["arm"].partition("('")[0] == one.arm}
        if rows and any(acts(row) for row in rows.values()):
            made.append(
                Finding(row=one.row, says=one.says, host=host, **facts, parts=tuple(parts(one, rows, found["whole"])),
                        leaves_out=one.leaves_out)
            )  # fmt: skip
    return as_data(made)


def acts(row: Row) -> bool:
    """Whether any answer of a task came out otherwise than the model's own; what never acts can be judged by none."""
    over: dict[str, float] = row["over"][DENSE]
    return bool(over["low"] or over["high"] or over["mean"])


def _cured(one: Stated, rows: dict[str, Row], whole: Row) -> list[Part]:
    """Habit's word less often than without the edit and than with chance in its place, more right answers, no harm."""
    told = "says habit's word less often" if one.task == "repainted" else "sees an absent thing less often"
    parts = [
        Part(says=told, found=measured(over), below=0, control="the model as it is" if other == DENSE else other)
        for other, over in rows[one.task]["habit_over"].items()
    ]
    parts.append(Part(says="answers more of them right", found=measured(rows[one.task]["over"][DENSE]), above=0))
    return [*parts, _harmless(rows["seeing"], "of ordinary questions, loses less than a point", LEAST_LOSS)]


def _harmless(row: Row, says: str, limit: float) -> Part:
    return Part(says=says, found=measured(row["over"][DENSE]), above=limit)


def _kept(one: Stated, rows: dict[str, Row], whole: Row) -> list[Part]:
    """More right answers than other choices of as many tokens, and what the row states of it beside the model."""
    row = rows["seeing"]
    beaten = {other: over for other, over in row["over"].items() if other != DENSE}
    parts = [
        Part(says="answers more questions", found=measured(over), above=0, control=other)
        for other, over in beaten.items()
    ]
    return [*parts, *STATES[one.row](row, whole)]


def _pairs(row: Row, whole: Row, most: float) -> Part:
    found = measured(row["intervals"]["pairs"], whole["pairs"])
    return Part(says=f"scores less than {most:.0%} of the pairs", found=found, below=most)


STATES: dict[int, Callable[[Row, Row], list[Part]]] = {
    115: lambda row, whole: [_harmless(row, "loses less than 3 points", -0.03)],
    262: lambda row, whole: [_harmless(row, "loses less than a point", LEAST_LOSS), _pairs(row, whole, 0.7)],
    267: lambda row, whole: [
        Part(says="keeps 90 % of the asked thing", found=measured(row["intervals"]["covered"]), above=0.9)
    ],
    89: lambda row, whole: [_harmless(row, "loses less than a point", LEAST_LOSS), _pairs(row, whole, 0.65)],
}
