"""How a masked-diffusion model fills answers: what each way of sampling gets right, and by how many forwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import torch

from headwise.assets import novel
from headwise.bench.judging.intervals import Interval, of_scores, of_strata
from headwise.decoding.diffusion.blocks import Adaptive, Blocks, Fixed
from headwise.decoding.diffusion.fill import Filling, fill
from headwise.errors import HeadwiseError, did_you_mean
from headwise.findings import ENOUGH, Finding, part
from headwise.kept import once
from headwise.models.diffusion_texts import END, HELD, HELD_OUT, MASK, NEWLINE, Example, Texts, decode
from headwise.seams.transformers.cache import Cache, PreTrainedModel
from headwise.seams.transformers.drive import decode as write
from headwise.seams.transformers.drive import prefill
from headwise.watch import Watch

BLOCK = 8  # tokens of a block that does not adapt
SURE = 0.9  # from where on a look fills more than the surest token (Fast-dLLM's and AdaBlock's setting)
STEPWISE = "one token a look"
CAUSAL = "left to right"
DRAFTED, SEVERAL = "self-speculation, {} drafts", "{} tokens a look"
FIXED = f"all above {SURE}"
LINES, NEVER = f"{FIXED}, blocks that end with a line", f"{FIXED}, such blocks never sure"
EVEN = 0.05  # of the answers: how much worse counts as no worse


@dataclass(frozen=True)
class Way:
    """A way to sample. `beside`: the one that it is compared with, question by question."""

    name: str
    filling: Filling | None
    blocks: Blocks | None
    beside: str | None = STEPWISE


def ways(length: int) -> list[Way]:
    """All ways for answers of at most `length` tokens. The window is a quarter of them and two blocks at least."""
    one = Filling(length=length, mask=MASK, end=END, window=max(2 * BLOCK, length // 4))
    sure, fixed, adaptive = replace(one, threshold=SURE), Fixed(BLOCK), Adaptive(NEWLINE, BLOCK)
    several = [Way(SEVERAL.format(count), replace(one, tokens=count), fixed) for count in (2, 4, 8)]
    drafted = [Way(DRAFTED.format(count), replace(one, drafts=count), fixed) for count in (1, 2, 4)]
    return [
        Way(STEPWISE, one, fixed, None),
        *drafted,
        *several,
        Way(FIXED, sure, fixed),
        Way(LINES, sure, adaptive, FIXED),
        Way(NEVER, sure, replace(adaptive, delimiter=END + 1), FIXED),
        Way("one token a look, blocks that end with a line", one, adaptive),
        Way(CAUSAL, None, None),
    ]


def chosen(names: Sequence[str], length: int) -> dict[int, Way]:
    """By number, the ways of some names and those that they are compared with; all of them where none is named.
    HeadwiseError for a name that no way has."""
    known = ways(length)
    for name in names:
        if name not in (all_ := [way.name for way in known]):
            raise HeadwiseError(f"there is no way '{name}'; {did_you_mean(name, all_)}")
    asked = {way.name for way in known if not names}
    asked |= {name for way in known if way.name in names for name in (way.name, way.beside) if name is not None}
    compared = [replace(way, beside=way.beside if way.beside in asked else None) for way in known]
    return {number: way for number, way in enumerate(compared) if way.name in asked}


def judge(
    model: PreTrainedModel, kind: Texts, recipe: str, asked: tuple[int, Sequence[str]], folder: Path | None,
    watch: Watch,
) -> dict[str, Any]:  # fmt: skip
    """What ways do with the same held texts, over caches of a recipe; finished ways are kept in `folder`.

    asked: how many texts, and the names of the ways beside those that they are compared with; all of them where none is
    named.
    """
    questions, names = asked
    examples = [kind.example(HELD + number) for number in range(questions)]
    longest = kind.length - min(len(one.prompt) for one in examples)
    found: dict[str, dict[str, Any]] = {}
    known = chosen(names, longest)
    for done, (number, way) in enumerate(known.items()):

        def ask(way: Way = way, before: int = done) -> dict[str, Any]:
            answers = []
            for row, example in enumerate(examples):
                watch(f"{kind.name}, {way.name}", before * questions + row, len(known) * questions)
                answers.append(_answered(model, kind, example, way, recipe))
            return {"answers": answers}

        found[way.name] = once(folder, f"{number}", ask)
    return {"text": kind.name, "questions": questions, "ways": [_row(way, found) for way in known.values()]}


def _answered(model: PreTrainedModel, kind: Texts, example: Example, way: Way, recipe: str) -> dict[str, Any]:
    """What a way makes of one text: the answer, how good it is, and its forwards."""
    made = Cache(model, recipe)
    logits = prefill(model, made, torch.tensor([example.prompt]), None)
    longest = kind.length - len(example.prompt)
    if way.filling is None or way.blocks is None:
        ids = write(model, made, logits, longest)[0].tolist()
        calls = looks = len(ids) - 1
        sizes = [1] * len(ids)
    else:
        filled = fill(model, made, replace(way.filling, length=longest), way.blocks)
        ids, calls, looks, sizes = filled.ids, filled.calls, filled.looks, filled.blocks
    text = decode(ids)
    return {"text": text, "score": score(kind, example, text), "calls": calls, "looks": looks, "blocks": sizes}


def score(kind: Texts, example: Example, text: str) -> float:
    """How good an answer is, 0 to 1: of sums whether every line of it is right, else the share of its words that the
    novel knows; the first and the last one may be cut and are not asked."""
    scores: dict[str, Callable[[], float]] = {
        "sums": lambda: float(text == decode(list(example.answer))),
        "novel": lambda: _known_share(text),
    }
    if kind.name not in scores:
        raise HeadwiseError(f"answers of '{kind.name}' are not judged; {did_you_mean(kind.name, scores)}")
    return scores[kind.name]()


def _known_share(text: str) -> float:
    words = _words(text)[1:-1]
    return sum(word in _vocabulary() for word in words) / max(1, len(words))


def _words(text: str) -> list[str]:
    return "".join(one if one.isalpha() else " " for one in text.lower()).split(" ")


@cache
def _vocabulary() -> frozenset[str]:
    text = novel()
    return frozenset(_words(text[: round(len(text) * (1 - HELD_OUT))]))


def _row(way: Way, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A way's figures, and its differences from the one beside it with their intervals."""
    own = found[way.name]["answers"]
    filling = None if way.filling is None else asdict(way.filling)
    row: dict[str, Any] = {
        "name": way.name, "filling": filling, "blocks": None if way.blocks is None else str(way.blocks),
        "quality": asdict(of_scores(_all(own, "score"))), "calls": asdict(of_scores(_all(own, "calls"))),
        "looks": asdict(of_scores(_all(own, "looks"))),
        "block": sum(map(sum, _all(own, "blocks"))) / sum(map(len, _all(own, "blocks"))), "beside": way.beside,
    }  # fmt: skip
    if way.beside is not None:
        other = found[way.beside]["answers"]
        texts = zip(_all(own, "text"), _all(other, "text"), strict=True)
        row["same"] = [float(mine == theirs) for mine, theirs in texts]
        for name, key in (("quality_over", "score"), ("calls_over", "calls")):
            gaps = [mine - theirs for mine, theirs in zip(_all(own, key), _all(other, key), strict=True)]
            row[name] = asdict(of_strata([gaps]))
    return row


def _all(answers: Sequence[dict[str, Any]], key: str) -> list[Any]:
    return [one[key] for one in answers]


def findings(one: Mapping[str, Any], command: str, machine: str) -> list[Finding]:
    """What the ways show of rows 146 and 162, of what `judge` found on one text: both where whole answers are right or
    wrong, and there are questions enough."""
    if one["questions"] < ENOUGH or one["text"] != "sums":
        return []
    ways = {row["name"]: row for row in one["ways"]}
    run: dict[str, Any] = {
        "host": f"a masked-diffusion host of four layers, {one['questions']} held texts of {one['text']}",
        "command": command, "machine": machine, "date": date.today().isoformat(),
    }  # fmt: skip
    drafted = {STEPWISE, SEVERAL.format(2), *(DRAFTED.format(count) for count in (1, 2, 4))}
    judged = ((drafted, _self_speculation), ({FIXED, LINES, NEVER}, _adaptive_blocks))
    return [make(ways, run) for needed, make in judged if needed <= ways.keys()]


def _self_speculation(ways: Mapping[str, Any], run: Mapping[str, Any]) -> Finding:
    """Row 146: the same texts in fewer forwards, where filling as many tokens unverified writes others."""
    one, two, four = (ways[DRAFTED.format(count)] for count in (1, 2, 4))
    unverified = ways[SEVERAL.format(2)]["same"]
    kept = [mine - theirs for mine, theirs in zip(two["same"], unverified, strict=True)]
    parts = (
        part("texts that are those of one token a look, with one, two and four drafts",
             of_scores([min(same) for same in zip(one["same"], two["same"], four["same"], strict=True)]), above=0.95),
        part("forwards that one draft takes over one token a look", _again(one["calls_over"]), below=0.01),
        part("forwards that two drafts take over one token a look", _again(two["calls_over"]), STEPWISE, below=0),
        part("forwards that four drafts take over one token a look", _again(four["calls_over"]), STEPWISE, below=0),
        part("texts kept by two drafts over those kept by two tokens a look that nothing verifies", of_strata([kept]),
             "as many tokens a look, unverified", above=0),
    )  # fmt: skip
    says = "drafts that the next look verifies write what one token a look writes, in fewer forwards from two drafts on"
    return Finding(row=146, says=says, parts=parts, **run)


def _adaptive_blocks(ways: Mapping[str, Any], run: Mapping[str, Any]) -> Finding:
    """Row 162: blocks that end with a line beside fixed ones of the same threshold."""
    lines, never = ways[LINES], ways[NEVER]
    parts = (
        part("answers right over those of fixed blocks", _again(lines["quality_over"]), "fixed blocks", above=-EVEN),
        part("forwards over those of fixed blocks", _again(lines["calls_over"]), "fixed blocks", below=0),
        part("texts that are those of fixed blocks where it is never sure", of_scores(never["same"]), above=0.95),
    )
    says = f"blocks that end with a line are as accurate as fixed ones, to {EVEN:.0%}, in no more forwards"
    return Finding(row=162, says=says, parts=parts, **run)


def _again(told: Mapping[str, Any]) -> Interval:
    """An interval that was written down."""
    return Interval(**told)
