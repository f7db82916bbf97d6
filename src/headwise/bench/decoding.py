"""The ways to choose tokens on a task with one answer and on one with many: records looked up, a novel gone on with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import torch

from headwise.assets import novel
from headwise.bench.job import encode
from headwise.bench.judging.intervals import Interval, of_scores, of_strata
from headwise.bench.ways import ROWS, WAYS, Prompts, Way
from headwise.findings import ENOUGH, Finding, part
from headwise.kept import once
from headwise.models.embedded.tasks import RECALL, Records, draw_records
from headwise.seams.transformers.cache import PreTrainedModel
from headwise.watch import Watch

KEYS, ANSWER = 8, 6  # of a list, each with two records, and tokens of an answer at most
BEFORE, BEHIND = 96, 32  # tokens of the novel that are read, and that are written
HELD_OUT = 0.1  # of the novel, its end
GRAMS = (2, 3, 4)


@dataclass(frozen=True)
class Asked:
    """A prompt's ids, and what should follow: the right answer, or the text that does follow."""

    ids: list[int]
    text: str
    following: list[int]


def closed(tokenizer: Any, count: int, seed: int) -> list[Asked]:
    """Lists of two records of each key in any order, and a question for the later one of a key."""
    found = []
    for number in range(count):
        random = Random(f"decoding/{seed}/{number}")
        first = list(draw_records(random, KEYS, held=True).pairs)
        values = [value for _, value in first]
        lines = [*first, *zip((key for key, _ in first), random.sample(values, KEYS), strict=True)]
        random.shuffle(lines)
        asked = random.choice(first)[0]
        answer = next(value for key, value in reversed(lines) if key == asked)
        text = f"{Records(tuple(lines)).text.lstrip()}\n{RECALL}\n{asked}:"
        found.append(Asked(encode(tokenizer, text, start=True)[0].tolist(), answer, []))
    return found


def open_ended(tokenizer: Any, count: int, seed: int) -> list[Asked]:
    """Pieces of the novel's end, with what follows them there."""
    text = novel()
    ids = encode(tokenizer, text[round(len(text) * (1 - HELD_OUT)) :], start=False)[0].tolist()
    random = Random(f"decoding/{seed}")
    starts = [random.randrange(len(ids) - BEFORE - BEHIND) for _ in range(count)]
    cuts = [ids[start : start + BEFORE + BEHIND] for start in starts]
    return [Asked(cut[:BEFORE], "", cut[BEFORE:]) for cut in cuts]


def judge(
    model: PreTrainedModel, tokenizer: Any, questions: int, *, seed: int, folder: Path | None, watch: Watch
) -> dict[str, Any]:
    """Every way on `questions` prompts of each task; what is finished is kept in `folder`."""
    asked = {"closed": closed(tokenizer, questions, seed), "open": open_ended(tokenizer, questions, seed)}
    found: dict[str, dict[str, list[list[int]]]] = {}
    for place, way in enumerate(WAYS):
        for task, own in asked.items():

            def write(
                way: Way = way, task: str = task, own: Sequence[Asked] = own, place: int = place
            ) -> dict[str, Any]:
                texts: list[list[int]] = []
                for first in range(0, len(own), ROWS):
                    watch(f"{task}, {way.name}", place * 2 * questions + first, 2 * len(WAYS) * questions)
                    torch.manual_seed(seed + first)
                    batch = _prompts(own[first : first + ROWS], model.device)
                    texts += way.write(model, batch, ANSWER if task == "closed" else BEHIND)
                return {"texts": texts}

            found.setdefault(way.name, {})[task] = once(folder, f"{place}-{task}", write)["texts"]
    humans = [_measured(model, one, one.following) for one in asked["open"]]
    rows = [_row(model, tokenizer, way, found[way.name], asked, humans) for way in WAYS]
    return {"questions": questions, "human": _means(humans), "ways": rows, **verdict(rows, seed)}


def _prompts(asked: Sequence[Asked], device: Any) -> Prompts:
    longest = max(len(one.ids) for one in asked)
    ids = torch.tensor([[0] * (longest - len(one.ids)) + one.ids for one in asked])
    mask = torch.tensor([[0] * (longest - len(one.ids)) + [1] * len(one.ids) for one in asked])
    return Prompts(ids.to(device), mask.to(device))


def _row(
    model: PreTrainedModel, tokenizer: Any, way: Way, texts: dict[str, list[list[int]]], asked: dict[str, list[Asked]],
    humans: Sequence[dict[str, float]],
) -> dict[str, Any]:  # fmt: skip
    """What a way's texts come to. right: of each question. gap: of each text, how far its surprise and its diversity
    are from those of the text that follows there."""
    said = [tokenizer.decode(text, skip_special_tokens=True).strip() for text in texts["closed"]]
    right = [float(text.startswith(one.text)) for text, one in zip(said, asked["closed"], strict=True)]
    own = [_measured(model, one, text) for one, text in zip(asked["open"], texts["open"], strict=True)]
    pairs = list(zip(own, humans, strict=True))
    gaps = {name: [abs(mine[name] - theirs[name]) for mine, theirs in pairs] for name in ("surprise", "diversity")}
    return {
        "name": way.name, "draws": way.draws, "by": way.by, "right": right, "closed": asdict(of_scores(right)),
        "open": _means(own), "gaps": gaps,
        "gap": {name: asdict(of_strata([values])) for name, values in gaps.items()},
    }  # fmt: skip


def _measured(model: PreTrainedModel, one: Asked, text: list[int]) -> dict[str, float]:
    """Of a text behind a prompt: the model's mean surprise, in nats a token, and the share of its 2- to 4-grams that
    are no repetition, multiplied (Su et al., arXiv 2202.06417, section 5.1)."""
    ids = torch.tensor([one.ids + text], device=model.device)
    with torch.no_grad():
        logs = model(input_ids=ids, use_cache=False).logits[0, len(one.ids) - 1 : -1].float().log_softmax(-1)
    surprise = -logs.gather(1, ids[0, len(one.ids) :, None]).mean()
    return {"surprise": float(surprise), "diversity": math.prod(_distinct(text, count) for count in GRAMS)}


def _distinct(text: list[int], count: int) -> float:
    grams = list(zip(*(text[start:] for start in range(count)), strict=False))
    return len(set(grams)) / len(grams) if grams else 1.0


def _means(measured: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(one[name] for one in measured) / len(measured) for name in measured[0]}


Of = Callable[[dict[str, Any]], list[float]]  # of a way, a number for each question


def verdict(rows: Sequence[dict[str, Any]], seed: int = 0) -> dict[str, Any]:
    """The best way of each task, and whether they and the two kinds of ways differ: paired, with 95 % intervals.

    Differences of best ones are told of ways that were chosen on the other half of the questions, so that what was best
    by luck gains nothing by it.
    """

    def over(one: Pick, other: Pick, of: Of) -> dict[str, Any]:
        gaps = [of(one(half))[at] - of(other(half))[at] for half, at in _halves(len(rows[0]["right"]))]
        return asdict(of_strata([gaps], seed))

    closed, open_ = (lambda half: _best(rows, _right, half)), (lambda half: _best(rows, _nearness, half))
    kinds = [[row for row in rows if row["draws"] is draws] for draws in (False, True)]
    means = [[sum(own) / len(own) for own in zip(*(row["right"] for row in kind), strict=True)] for kind in kinds]
    lead = [one - other for one, other in zip(*means, strict=True)]
    return {
        "best_closed": _best(rows, _right)["name"], "best_open": _best(rows, _nearness)["name"],
        "closed_best_over_open_best": over(closed, open_, _right),
        "open_gap_of_closed_best_over_open_best": over(closed, open_, _gap),
        "deterministic_over_drawn": asdict(of_strata([lead], seed)),
        "best_deterministic_over_best_drawn": over(
            lambda half: _best(kinds[0], _right, half), lambda half: _best(kinds[1], _right, half), _right),
    }  # fmt: skip


Pick = Callable[[int], dict[str, Any]]  # a way, chosen for questions of a half


def _halves(count: int) -> list[tuple[int, int]]:
    """Every question with the half that it is in: every other one."""
    return [(at % 2, at) for at in range(count)]


def _best(rows: Sequence[dict[str, Any]], of: Of, half: int | None = None) -> dict[str, Any]:
    """The way that is best by `of` on the questions that are not in a half, or on all."""
    count = len(rows[0]["right"])
    chosen = [at for own, at in _halves(count) if own != half] or [at for _, at in _halves(count)]
    return max(rows, key=lambda row: sum(of(row)[at] for at in chosen))


def _right(row: dict[str, Any]) -> list[float]:
    right: list[float] = row["right"]
    return right


def _gap(row: dict[str, Any]) -> list[float]:
    """How far texts are from the human's, by what they are farther in, surprise or diversity."""
    return [max(pair) for pair in zip(*row["gaps"].values(), strict=True)]


def _nearness(row: dict[str, Any]) -> list[float]:
    return [-gap for gap in _gap(row)]


def findings(result: dict[str, Any], host: str, command: str, machine: str) -> list[Finding]:
    """What a result shows of row 197; nothing of too few questions."""
    if result["questions"] < ENOUGH:
        return []
    told = {name: Interval(**result[name]) for name in result if "_over_" in name}
    parts = (
        part("how much farther the best way of answers is from the human's texts than the best way of texts",
             told["open_gap_of_closed_best_over_open_best"], "the best way of texts", above=0),
        part("answers right of the best way of answers over the best way of texts",
             told["closed_best_over_open_best"], "the best way of texts", above=0),
        part("answers right of the ways that draw nothing over those that draw", told["deterministic_over_drawn"],
             "the ways that draw", above=0),
        part("answers right of the best way that draws nothing over the best that draws",
             told["best_deterministic_over_best_drawn"], above=0),
    )  # fmt: skip
    says = "the best way to choose tokens differs between answers and texts, and for answers ways that draw nothing win"
    return [Finding(row=197, says=says, host=f"{host}, {result['questions']} prompts of each task", command=command,
                    machine=machine, date=date.today().isoformat(), parts=parts)]  # fmt: skip
