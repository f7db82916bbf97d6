"""The rows of `headwise run`: one arm after the other, and the check that nothing changes without a plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from headwise.bench.arms import Arm
from headwise.bench.frame import Frame
from headwise.bench.job import Job, Question
from headwise.bench.judging.judge import check_control
from headwise.bench.protocol import digest
from headwise.bench.runner import Answer, Ran, Runner
from headwise.kept import keep, kept
from headwise.watch import Watch, within


def run_arms(
    runner: Runner, job: Job, frame: Frame, arms: Sequence[Arm], watch: Watch, folder: Path | None = None
) -> Iterator[dict[str, Any]]:
    """Each arm's row as plain JSON data, as soon as it is there.

    folder: where finished rows are kept; those that are there are not measured again. Raises HeadwiseError at the end
    when the control arm did not write what the dense arm wrote, token for token.
    """
    wrote: dict[str, list[list[int]]] = {}
    steps = runner.steps(job)
    cold, total = True, len(arms) * steps
    for place, arm in enumerate(arms):
        plan = arm.plan(frame)
        key = digest([arm.role, arm.label, plan.digest, frame.bytes_of(plan)])
        found = kept(folder, key)
        if found is None:
            if cold:
                watch("warming up", place * steps, total)
                runner.warm_up(job)
                cold = False
            tell = within(watch, f"{place + 1}/{len(arms)} {arm.label}", place * steps, total)
            ran = runner.run(plan, job, tell=tell)
            texts = [answer.tokens for answer in _written(ran)]
            found = keep(folder, key, {"row": row_of(arm, job, ran), "wrote": texts})
        wrote[arm.role] = found["wrote"]
        yield found["row"]
    if "control" in wrote:
        check_control(wrote.get("dense"), wrote["control"])


def row_of(arm: Arm, job: Job, ran: Ran) -> dict[str, Any]:
    """What an arm did, as plain JSON data rounded to what was measured; bytes and counts are those of `Held`.

    decode_tokens_per_s, moved_per_token: over all steps in which something was written. answers: ask, got, and of a
    question with a known answer depth, expected, right.
    """
    held, written = ran.held, _written(ran)
    steps, seconds = sum(one.steps for one in written), sum(one.seconds for one in written)
    answers = [_verdict(question, one) for question, one in zip(job.questions, ran.answers, strict=True)]
    marked = [answer["right"] for answer in answers if "right" in answer]
    heads = sum(map(len, held.kept))
    return {
        "recipe": arm.label,
        "role": arm.role,
        "plan_digest": held.plan_digest,
        "recipes": held.recipes,
        "prefill_s": round(ran.prefill_s, 4),
        "decode_tokens_per_s": round(steps / seconds, 2) if steps else None,
        "cache_bytes": held.cache_bytes,
        "predicted_bytes": held.predicted_bytes,
        "dense_bytes": held.dense_bytes,
        "peak_bytes": held.peak_bytes,
        "kept_share": round(sum(map(sum, held.kept)) / (held.tokens * heads), 6),
        "kept": held.kept,
        "lost_mass": held.lost_mass,
        "backends": held.backends,
        "remarks": held.remarks,
        "moved_per_token": sum(one.moved for one in written) // max(1, steps),
        "answers_right": sum(marked) if marked else None,
        "answers_total": len(marked) if marked else None,
        "perplexity": None if ran.perplexity is None else round(ran.perplexity, 4),
        "answers": answers,
        "continued": "" if ran.continued is None else ran.continued.text,
    }


def _written(ran: Ran) -> list[Answer]:
    """Everything that was written."""
    return [*ran.answers, *([] if ran.continued is None else [ran.continued])]


def _verdict(question: Question, answer: Answer) -> dict[str, Any]:
    ask, told = question.ask, {"ask": question.ask.prompt, "got": answer.text}
    if not ask.expected:
        return told
    return {**told, "depth": ask.depth, "expected": ask.expected[0], "right": ask.right(answer.text)}
