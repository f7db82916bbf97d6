"""Decoders on questions of faithfulness: what they say, what they keep silent about, how fluent it is and its cost.

A batch of questions is read once; every decoder goes on from a copy of that cache, so that all answer the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from headwise.bench.faithful.controls import control_of
from headwise.bench.faithful.questions import DOCUMENTS, KINDS, Asked
from headwise.bench.judging.intervals import of_scores, of_strata
from headwise.bench.protocol import digest
from headwise.decoders import Decoder, decoder
from headwise.errors import HeadwiseError
from headwise.faithful.looks import CONTEXT, Looks
from headwise.kept import once
from headwise.seams.transformers.cache import Cache, PreTrainedModel
from headwise.seams.transformers.drive import end_tokens
from headwise.shapes import Mark

BATCH = 32  # questions that are read together
LIMITS = {"conflict": 6, "placed": 6, "unanswerable": 8}  # tokens of an answer at most
GREEDY = "greedy"
Watch = Callable[[str, int, int], None]


class Greedy(Decoder):
    """No decoder: the model's own probabilities. Temperature changes nothing of what is said so, which makes this its
    control as well."""

    name, needs, neutral = GREEDY, frozenset({"exits", "attention"}), GREEDY

    def step(self, logits: torch.Tensor, looks: Looks) -> torch.Tensor:
        return logits.log_softmax(-1)


@dataclass(frozen=True)
class Batch:
    """Questions as ids [b, n], left-padded by `left [b]` columns, with the marks of their passages."""

    asked: tuple[Asked, ...]
    ids: torch.Tensor
    left: torch.Tensor
    marks: tuple[Mark, ...]


def arms(sentences: Sequence[str]) -> dict[str, Decoder]:
    """By name, greedy decoding, each decoder asked for, and behind it its control."""
    found: dict[str, Decoder] = {GREEDY: Greedy()}
    for sentence in sentences:
        made = decoder(sentence)
        found[sentence] = made
        if (control := control_of(made)) is not None:
            found[f"{control.name} [{sentence}]"] = control
    return found


def batches(tokenizer: Any, kind: str, seed: int, count: int) -> list[Batch]:
    """All questions of a kind, as a chat where the model has one, in batches."""
    asked = KINDS[kind](seed, count)
    return [_batch(tokenizer, asked[first : first + BATCH]) for first in range(0, len(asked), BATCH)]


def _batch(tokenizer: Any, asked: Sequence[Asked]) -> Batch:
    rows, marks = [], []
    for row, one in enumerate(asked):
        before, after = _prompt(tokenizer, one)
        parts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, one.passage, after)]
        rows.append(torch.tensor([token for part in parts for token in part]))
        marks.append(Mark(CONTEXT, len(parts[0]), len(parts[0]) + len(parts[1]), row))
    longest = max(map(len, rows))
    left = torch.tensor([longest - len(row) for row in rows])
    ids = torch.stack([torch.cat((row.new_zeros(longest - len(row)), row)) for row in rows])
    return Batch(tuple(asked), ids, left, tuple(marks))


def _prompt(tokenizer: Any, one: Asked) -> tuple[str, str]:
    """What stands before the passage, and after it to the answer's beginning."""
    if not getattr(tokenizer, "chat_template", None):
        return "Text: ", f"\nQuestion: {one.question}\nAnswer: {one.opening}".rstrip()
    message = {"role": "user", "content": f"{one.passage}\n\n{one.question}"}
    whole = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    before, _, after = whole.partition(one.passage)
    return before, after + one.opening


def judge(
    model: PreTrainedModel,
    tokenizer: Any,
    sentences: Sequence[str],
    questions: int,
    *,
    seed: int = 0,
    folder: Path | None = None,
    watch: Watch = lambda what, done, total: None,
) -> dict[str, Any]:
    """Every arm's answers to `questions` of each kind, and what they come to. folder: where what is done is kept."""
    if questions < 1:
        raise HeadwiseError(f"{questions} questions: nothing would be asked; give at least 1")
    made = arms(sentences)
    by_kind = {kind: batches(tokenizer, kind, seed, questions) for kind in KINDS}
    work = [(kind, place, batch) for kind, own in by_kind.items() for place, batch in enumerate(own)]
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in made}
    done, total = 0, len(work) * len(made)
    for kind, place, batch in work:
        first: list[tuple[Looks, torch.Tensor]] = []
        for name, one in made.items():
            watch(f"{kind}: {name}", done, total)

            def answered(one: Decoder = one, batch: Batch = batch, first: list[Any] = first) -> dict[str, Any]:
                if not first:
                    first.append(_read(model, batch))
                return _answered(first[0], batch, one, tokenizer)

            answers[name].append({"kind": kind, **once(folder, f"{kind}-{place}-{digest(name)}", answered)})
            done += 1
    return {"arms": [_row(name, answers[name], answers, made) for name in made], "questions": _asked_facts(work)}


def _read(model: PreTrainedModel, batch: Batch) -> tuple[Looks, torch.Tensor]:
    """The first look at a batch, which all arms share, and its logits [b, vocab]."""
    looks = Looks(model, Cache(model, "", marks=batch.marks), Greedy())
    return looks, looks.read(batch.ids, batch.left)


def _answered(first: tuple[Looks, torch.Tensor], batch: Batch, one: Decoder, tokenizer: Any) -> dict[str, Any]:
    """The answers of one arm to a batch: texts, what they are, the base model's nats a token, and the cost."""
    looks, (ids, logits) = first[0].fork(one), (batch.ids, first[1])
    ends, rows = end_tokens(looks.model), len(ids)
    going, written, nats, counts = torch.ones(rows, dtype=torch.bool), [""] * rows, [0.0] * rows, [0] * rows
    new_ids: list[list[int]] = [[] for _ in range(rows)]
    for step in range(limit := LIMITS[batch.asked[0].kind]):
        chosen = looks.step(logits).argmax(-1)
        own = -logits.log_softmax(-1)[torch.arange(rows), chosen]
        for row in going.nonzero()[:, 0].tolist():
            token = int(chosen[row])
            nats[row], counts[row] = nats[row] + float(own[row]), counts[row] + 1
            new_ids[row].append(token)
            written[row] = tokenizer.decode(new_ids[row], skip_special_tokens=True)
            ended = token in ends or "\n" in written[row].lstrip()
            going[row] = not ended and not batch.asked[row].settled(written[row])
        if not bool(going.any()) or step == limit - 1:
            break
        ids = torch.cat((ids, chosen[:, None]), dim=1)
        logits = looks.read(ids, batch.left)
    said = [asked.said(text) for asked, text in zip(batch.asked, written, strict=True)]
    right = [asked.right(text) for asked, text in zip(batch.asked, written, strict=True)]
    slots = [asked.slot for asked in batch.asked]
    return {"texts": written, "said": said, "right": right, "slots": slots, "nats": nats, "tokens": counts,
            "steps": step + 1, "cost": asdict(looks.cost)}  # fmt: skip


def _row(name: str, own: list[dict[str, Any]], answers: dict[str, Any], made: dict[str, Decoder]) -> dict[str, Any]:
    """What an arm comes to, beside greedy decoding and beside its control, question by question."""
    names = list(made)
    control = next((other for other in names if other.endswith(f"[{name}]")), None)
    tokens = sum(sum(part["tokens"]) for part in own)
    return {
        "name": name,
        "control": control,
        "right": {kind: asdict(of_scores(_scores(own, kind, "right"))) for kind in KINDS},
        "known": sum(word == "known" for word in _said(own, "conflict")) / max(1, len(_said(own, "conflict"))),
        "abstained": sum(word == "abstained" for kind in ("conflict", "placed") for word in _said(own, kind)),
        "slots": [_mean([ok for ok, slot in _slots(own) if slot == place]) for place in range(DOCUMENTS)],
        "perplexity": math.exp(sum(sum(part["nats"]) for part in own) / max(1, tokens)),
        "over_greedy": {kind: _difference(own, answers[GREEDY], kind) for kind in KINDS},
        "over_control": {kind: _difference(own, answers[control], kind) for kind in KINDS} if control else None,
        "tokens": tokens,
        "steps": sum(part["steps"] for part in own),
        "cost": {key: sum(part["cost"][key] for part in own) for key in own[0]["cost"]},
        "answers": own,
    }


def _difference(own: list[dict[str, Any]], other: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The share of right answers less another arm's, paired, with its interval."""
    pairs = zip(_scores(own, kind, "right"), _scores(other, kind, "right"), strict=True)
    return asdict(of_strata([[one - two for one, two in pairs]]))


def _scores(own: list[dict[str, Any]], kind: str, what: str) -> list[float]:
    return [float(one) for part in own if part["kind"] == kind for one in part[what]]


def _said(own: list[dict[str, Any]], kind: str) -> list[str]:
    return [word for part in own if part["kind"] == kind for word in part["said"]]


def _slots(own: list[dict[str, Any]]) -> list[tuple[float, int]]:
    return [pair for part in own if part["kind"] == "placed" for pair in zip(part["right"], part["slots"], strict=True)]


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / max(1, len(scores))


def _asked_facts(work: Sequence[tuple[str, int, Batch]]) -> dict[str, Any]:
    """How much was asked and read."""
    return {
        kind: {
            "count": sum(len(batch.asked) for own, _, batch in work if own == kind),
            "prompt_tokens": sum(int((batch.ids.shape[1] - batch.left).sum()) for own, _, batch in work if own == kind),
        }
        for kind in KINDS
    }
