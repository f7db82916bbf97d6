"""What leaving image tokens out, steering and decoding are worth on a vision-language model, beside their controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headwise.bench.judging.intervals import of_scores, of_strata
from headwise.bench.protocol import digest
from headwise.errors import HeadwiseError
from headwise.kept import once
from headwise.models.vlm.scenes import CELL, CELLS, PATCH, PATCHES, SIDE
from headwise.seams.transformers.cache import attach
from headwise.vision.arms import answers
from headwise.vision.questions import WORD_OF, Item, drawn, items
from headwise.vision.seen import cost
from headwise.watch import Watch

DENSE = "as it is"
PRUNED = {  # arm: what it is compared with beside the model as it is
    "random_tokens(keep=0.25)": (),
    "fastv(keep=0.25, layer=2)": ("random_tokens(keep=0.25, layer=2)",),
    "random_tokens(keep=0.25, layer=2)": (),
    "vtc_cls(keep=0.25)": ("random_tokens(keep=0.25)", "fastv(keep=0.25, layer=2)"),
    "random_tokens(keep=0.5)": (),
    "vtc_cls(keep=0.5)": ("random_tokens(keep=0.5)", "fastv(keep=0.25, layer=2)"),
    "core_matching, random tokens": (),
    "core_matching": ("core_matching, random tokens",),
    "random_tokens(keep=0.6)": (),
    "zero_tprune, similarity alone": (),
    "zero_tprune(keep=0.6)": ("random_tokens(keep=0.6)", "zero_tprune, similarity alone"),
    "exit_at(layer=3)": (),
    "exit_at(layer=4)": (),
    "exit_at(layer=5)": (),
}
STEERED = {
    "paint, the question": (),
    "paint(0.9)": ("paint, the question",),
    "var, random tokens of the image": (),
    "var": ("var, random tokens of the image",),
    "damro, random tokens": (),
    "damro": ("damro, random tokens",),
    "causalmm, another picture": (),
    "causalmm": ("causalmm, another picture",),
    "conscious_gaze, random places": (),
    "conscious_gaze, every token": (),
    "conscious_gaze": ("conscious_gaze, random places", "conscious_gaze, every token"),
}
TOOK = ("tokens", "pairs", "bytes", "covered", "last")  # of pruned prompts
SETS = {"pruned": (PRUNED, ("seeing",)), "steered": (STEERED, ("invented", "repainted", "seeing"))}


def judged(
    model: Any, asked: str, questions: int, router: Path | None, folder: Path | None = None,
    watch: Watch = lambda what, done, total: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for each arm and task of a set, `pruned` or `steered`. router: of `dyvte`, which is an arm where it is
    given. folder: where each finished arm is kept, so that a killed call goes on."""
    if questions < 2:
        raise HeadwiseError(f"{questions} questions tell nothing apart; give 64 or more")
    arms, tasks = SETS[asked]
    arms = {DENSE: (), **arms}
    if asked == "pruned" and router is not None:
        arms |= {f"dyvte('{router}')": ("exit_at(layer=3)", "exit_at(layer=4)", "exit_at(layer=5)")}
    rows = []
    for place, task in enumerate(tasks):
        asked_of, found = drawn(task, questions), dict[str, dict[str, Any]]()
        for number, arm in enumerate(arms):
            watch(f"{task}: {arm}", place * len(arms) + number, len(tasks) * len(arms))

            def made(arm: str = arm, own: list[Item] = asked_of) -> dict[str, Any]:
                return measured(model, "" if arm == DENSE else arm, own)

            found[arm] = once(folder, f"{task}-{digest([arm, len(asked_of)])}", made)
        rows += [row_of(arm, task, found, arms[arm]) for arm in arms]
    return rows


def whole(model: Any, questions: int) -> dict[str, float]:
    """What the prompts of `seeing` take in the mean where nothing is left out: pairs and bytes."""
    geometry, own = attach(model).geometry, list[dict[str, int]]()
    for one in items("seeing", questions):
        own.append(cost([PATCHES] * len(geometry.layers), len(one.ids) - PATCHES, geometry))
    return {what: sum(one[what] for one in own) / len(own) for what in ("pairs", "bytes")}


def measured(model: Any, arm: str, drawn: Sequence[Item]) -> dict[str, Any]:
    """Of each question: whether the arm's word is right, whether it is what habit says; of pruned ones how many tokens
    reached each layer, what the prompts took, and the share of the asked thing's patches that stayed to the end."""
    own = answers(model, arm, drawn)
    words = [WORD_OF[int(one.argmax())] for one in own.logs]
    told: dict[str, Any] = {
        "right": [float(word == one.question.answer) for word, one in zip(words, drawn, strict=True)],
        "habit": [float(word == one.habit) for word, one in zip(words, drawn, strict=True) if one.habit is not None],
    }
    if own.counts:
        told["tokens"] = [sum(one) / len(one) for one in own.counts]
        told["pairs"], told["bytes"] = ([float(one[what]) for one in own.costs] for what in ("pairs", "bytes"))
        told["covered"] = [_covered(one, kept) for one, kept in zip(drawn, own.kept, strict=True)]
        told["last"] = [len(kept) for kept in own.kept]
    return told


def _covered(item: Item, kept: Sequence[int]) -> float | None:
    """The share of the patches of the thing that is asked about which stayed; None where none is asked about."""
    thing = None if item.question.shape is None else item.scene.of(item.question.shape)
    if thing is None:
        return None
    patches, side = CELL // PATCH, SIDE // PATCH
    y, x = (patches * place for place in divmod(thing.cell, CELLS))
    own = {(y + down) * side + x + right for down in range(patches) for right in range(patches)}
    return len(own & set(kept)) / len(own)


def row_of(arm: str, task: str, found: dict[str, dict[str, Any]], controls: Sequence[str]) -> dict[str, Any]:
    """Of an arm: how often it is right and how often it says what habit says; the differences of both to the model as
    it is and to controls, paired by question, with 95 % intervals; what pruned prompts took."""
    own = found[arm]

    def over(other: str, what: str = "right") -> dict[str, Any]:
        pairs = zip(own[what], found[other][what], strict=True)
        return asdict(of_strata([[one - two for one, two in pairs]]))

    others = () if arm == DENSE else (DENSE, *controls)
    row: dict[str, Any] = {"arm": arm, "task": task, "right": asdict(of_scores(own["right"]))}
    row["habit"] = asdict(of_scores(own["habit"])) if own["habit"] else None
    row["over"] = {other: over(other) for other in others}
    row["habit_over"] = {other: over(other, "habit") for other in others} if own["habit"] else {}
    took = {name: [one for one in own.get(name, ()) if one is not None] for name in TOOK}
    row |= {name: sum(values) / len(values) if values else None for name, values in took.items()}
    row["intervals"] = {name: asdict(of_strata([values])) for name, values in took.items() if values}
    return row
