"""What arranging is worth: is the document that answers found, and does the model answer better after it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from headwise.bench.judging.intervals import of_scores, of_strata
from headwise.bench.protocol import digest
from headwise.context.answers import answer, says
from headwise.context.arrange import arrange
from headwise.context.asked import Arranged
from headwise.context.material import Item
from headwise.errors import HeadwiseError
from headwise.kept import once
from headwise.seams.transformers.cache import PreTrainedModel
from headwise.tasks.scores import any_found
from headwise.watch import Watch

BASE = "as_given"  # what all others are compared with


def judged(
    model: PreTrainedModel,
    tokenizer: Any,
    items: Sequence[Item],
    methods: Sequence[str],
    watch: Watch = lambda what, done, total: None,
    folder: Path | None = None,
    new_tokens: int = 8,
) -> list[dict[str, Any]]:
    """A row for each method, and for documents as they were given, with 95 % intervals; see `row_of`.

    folder: where each finished question is kept, so that a killed call goes on.
    """
    methods = list(dict.fromkeys((BASE, *methods)))
    found: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
    for number, item in enumerate(items):
        said: dict[tuple[str, str], float] = {}
        for place, method in enumerate(methods):
            watch("asking questions", number * len(methods) + place, len(items) * len(methods))
            key = f"{number}-{digest([method, new_tokens, asdict(item)])}"
            make = partial(_measured, model, tokenizer, item, (method, new_tokens), said)
            found[method].append(once(folder, key, make))
    return [row_of(method, found) for method in found]


def _measured(
    model: PreTrainedModel, tokenizer: Any, item: Item, how: tuple[str, int], said: dict[tuple[str, str], float]
) -> dict[str, Any]:
    """Of one question and method. said: what was right after prompts of this question already, by text and reading."""
    try:
        made = arrange(model, tokenizer, item.documents, item.question, how[0], item.wording)
    except HeadwiseError as error:
        return {"refused": str(error)}
    key = (made.text, str(made.pieces))
    if key not in said:
        if item.opened:
            said[key] = float(says(model, tokenizer, made, item.answers[0]))
        else:
            said[key] = any_found(item.answers, answer(model, tokenizer, made, how[1]))
    return {
        "right": said[key],
        "slot": made.places.index(item.gold) / max(1, len(made.places) - 1) if item.gold in made.places else None,
        "here": float(item.gold in made.places),
        "proof": float(item.proof in made.text),
        "share": sum(map(len, made.documents)) / sum(map(len, item.documents)),
        "passes": made.passes,
        **_ranking(made, item.gold),
    }


def _ranking(made: Arranged, gold: int) -> dict[str, float]:
    """Where the scores put the document that answers: first of all, and the share of others below it, ties half."""
    if gold not in made.scores or len(made.scores) < 2:
        return {}
    own, others = made.scores[gold], [score for place, score in made.scores.items() if place != gold]
    below = sum(score < own for score in others) + 0.5 * sum(score == own for score in others)
    return {"first": float(all(score < own for score in others)), "auc": below / len(others)}


def row_of(method: str, found: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Of a method: how often its answers are right, how much more often than with the documents as given, and than by
    each other method (`over`), paired by question; how often its scores put the right document first, and their AUC;
    where that document stands in the prompt, 0 first and 1 last, and how often in the last third (`late`); the share
    of the text that is left; forwards before the answer."""
    results, base = found[method], found[BASE]
    refused = [one["refused"] for one in results if "refused" in one]
    if refused:
        return {"method": method, "refused": refused[0]}
    row: dict[str, Any] = {"method": method, "questions": len(results)}
    row["right"] = asdict(of_scores([one["right"] for one in results]))
    row["gain"] = _difference(results, base, "right")
    row["over"] = {
        other: {name: _difference(results, own, name) for name in ("right", "first")}
        for other, own in found.items()
        if other != method and not any("refused" in one for one in own)
    }
    slots = [one["slot"] for one in results if one["slot"] is not None]
    row["late"] = asdict(of_scores([float(3 * slot >= 2) for slot in slots])) if slots else None
    for name in ("first", "auc"):
        own = [one[name] for one in results if name in one]
        row[name] = asdict(of_scores(own) if name == "first" else of_strata([own])) if own else None
    for name in ("here", "proof", "share", "passes", "slot"):
        own = [one[name] for one in results if one[name] is not None]
        row[name] = sum(own) / len(own) if own else None
    thirds = [
        [one["right"] for one in results if one["slot"] is not None and i <= 3 * one["slot"] <= i + 1] for i in range(3)
    ]
    row["by_slot"] = [sum(own) / len(own) if own else None for own in thirds]
    return row


def _difference(one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """The mean of what one method has more than another, by question, with its interval; None where one has none."""
    pairs = zip(one, other, strict=True)
    gaps = [own[name] - beside[name] for own, beside in pairs if name in own and name in beside]
    return asdict(of_strata([gaps])) if gaps else None
