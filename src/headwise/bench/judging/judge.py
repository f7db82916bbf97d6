"""From cells to a verdict: rows with scores and savings, each method against its baselines, and the A/A control."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from headwise.bench.arms import Arm
from headwise.bench.judging.intervals import Interval, of_scores, of_strata, of_tasks
from headwise.errors import HeadwiseError

Place = tuple[str, int]  # task, context
Cells = dict[Place, dict[str, Any]]


def rows_of(results: Sequence[dict[str, Any]], arms: Sequence[Arm], seed: int) -> list[dict[str, Any]]:
    """A row for each arm, in order. HeadwiseError when the control did not write what dense attention wrote."""
    all_of: dict[str, Cells] = defaultdict(dict)
    for result in results:
        all_of[str(result["cell"]["arm"])][result["cell"]["task"], result["cell"]["context"]] = result
    made = [(arm, *_split(all_of[str(arm.facts())])) for arm in arms]
    dense = next(cells for arm, cells, _ in made if arm.role == "dense")
    for arm, cells, _ in made:
        if arm.role == "control":
            check_control(_written(dense), _written(cells))
    rows = []
    for arm, cells, refused in made:
        row = _head(arm, refused) | (_figures(cells, dense, seed) if cells else {})
        if arm.role == "plan" and cells:
            rivals = {
                other.label: theirs
                for other, theirs, _ in made
                if other.role == "baseline" and other.peer == arm.peer and theirs.keys() & cells.keys()
            }
            row["verdict"] = verdict(cells, rivals, dense, seed)
        rows.append(row)
    return rows


def check_control(dense: object, control: object) -> None:
    """Raise unless the control arm wrote what the dense arm wrote, token for token."""
    if dense != control:
        raise HeadwiseError(
            "the A/A control failed: a plan that evicts nothing wrote other tokens than dense attention, so "
            "differences between rows mean nothing; run again with --dtype float32, and report it if it persists"
        )


def verdict(cells: Cells, rivals: dict[str, Cells], dense: Cells, seed: int) -> dict[str, Any]:
    """How a method stands against its baselines, on the same asks: paired differences of the scores.

    flagged: it is not better than every baseline. certain: every interval of the difference excludes 0.
    """
    against = {name: asdict(difference(cells, there, seed)) for name, there in rivals.items()}
    worse = [name for name, gap in against.items() if gap["mean"] <= 0]
    certain = all(gap["low"] > 0 or gap["high"] < 0 for gap in against.values())
    if not against:
        gap = difference(cells, dense, seed)
        hurts = gap.high < 0
        words = "loses to dense attention" if hurts else "no baseline of equal bytes: held against dense attention"
        return {"flagged": hurts, "certain": hurts, "words": words, "against": {"dense": asdict(gap)}}
    words = f"DOES NOT BEAT {' and '.join(worse)}" if worse else f"beats {' and '.join(against)}"
    return {"flagged": bool(worse), "certain": certain, "words": words, "against": against}


def difference(mine: Cells, theirs: Cells, seed: int) -> Interval:
    """The mean over tasks of my score less theirs, ask by ask, with its bootstrap interval."""
    strata = []
    for place in mine.keys() & theirs.keys():
        others = {(s["item"], s["ask"]): s["score"] for s in theirs[place]["samples"]}
        own = {(s["item"], s["ask"]): s["score"] for s in mine[place]["samples"]}
        if own.keys() != others.keys():
            raise HeadwiseError(f"task '{place[0]}' was asked differently in the two rows; make both again")
        strata.append((place, [score - others[ask] for ask, score in own.items()]))
    return of_strata([scores for _, scores in sorted(strata)], seed)


def _split(cells: Cells) -> tuple[Cells, dict[str, str]]:
    """The cells that were measured, and why the others were refused."""
    kept = {place: result for place, result in sorted(cells.items()) if not result["refused"]}
    refused = {f"{task} {context}": cells[task, context]["refused"] for task, context in sorted(cells.keys() - kept)}
    return kept, refused


def _head(arm: Arm, refused: dict[str, str]) -> dict[str, Any]:
    return {
        "name": arm.label, "recipe": arm.sentence, "role": arm.role, "peer": arm.peer, "share": arm.share,
        "refused": refused,
    }  # fmt: skip


def _figures(cells: Cells, dense: Cells, seed: int) -> dict[str, Any]:
    """What an arm scored and held where it was measured, beside what dense attention held there."""
    samples = [sample for result in cells.values() for sample in result["samples"]]
    documents = [document for result in cells.values() for document in result["documents"]]
    plain = [sample for place in cells for sample in dense[place]["samples"]]
    tasks = {}
    for (task, context), result in cells.items():
        own = result["samples"]
        tasks[f"{task} {context}"] = {
            "task": task,
            "context": context,
            "chance": result["chance"],
            **_rounded(of_scores([sample["score"] for sample in own], seed)),
            "truncated": sum(sample["truncated"] for sample in own),
            "samples": [{key: sample[key] for key in ("item", "ask", "depth", "score", "got")} for sample in own],
        }
    overall = of_tasks([[s["score"] for s in result["samples"]] for result in cells.values()], seed)
    written, before = (sum(len(sample["tokens"]) for sample in group) for group in (samples, plain))
    return {
        "recipes": sorted({recipe for document in documents for recipe in document["recipes"]}),
        "plans": sorted({document["plan_digest"] for document in documents}),
        "overall": _rounded(overall),
        "byte_steps_of_dense": round(_total(samples, "byte_steps") / _total(plain, "byte_steps"), 6),
        "output_tokens_of_dense": round(written / before, 6),
        "cache_bytes": round(_total(documents, "cache_bytes") / len(documents)),
        "of_dense": round(_total(documents, "cache_bytes") / _total(documents, "dense_bytes"), 6),
        "truncated": sum(sample["truncated"] for sample in samples),
        "asks": len(samples),
        "kept_share": _by_head(documents, lambda one: [[n / one["tokens"] for n in row] for row in one["kept"]]),
        "lost_mass": _by_head(documents, lambda one: one["lost_mass"]),
        "tasks": tasks,
    }


def _written(cells: Cells) -> dict[Place, list[list[int]]]:
    return {place: [sample["tokens"] for sample in result["samples"]] for place, result in cells.items()}


def _total(facts: Sequence[dict[str, Any]], name: str) -> float:
    return sum(one[name] for one in facts)


def _by_head(documents: Sequence[dict[str, Any]], of: Any) -> list[list[float]]:
    """Means over documents of a table [layers][KV heads]."""
    tables = [of(document) for document in documents]
    return [
        [round(sum(t[i][j] for t in tables) / len(tables), 6) for j in range(len(row))]
        for i, row in enumerate(tables[0])
    ]


def _rounded(interval: Interval) -> dict[str, Any]:
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in asdict(interval).items()}
