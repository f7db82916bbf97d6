"""Which drafter pays over a plan's cache, on this machine and on texts that matter: drafted decoding beside plain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from headwise.bench.judging.intervals import of_strata
from headwise.bench.protocol import digest
from headwise.decoding.speculate import write
from headwise.errors import HeadwiseError
from headwise.kept import once
from headwise.observe import Recall
from headwise.plan import Plan
from headwise.seams.transformers.cache import Cache, PreTrainedModel
from headwise.seams.transformers.drive import decode, feed, prefill
from headwise.watch import Watch

UNTRAINED = ("lookup", "lookup(drafts=4)", "hierarchy", "hierarchy(drafts=4)")
NEW = 64  # tokens that are written after a text


def drafts_tried(
    model: PreTrainedModel, plan: Plan, texts: Sequence[Recall], drafts: Sequence[str], folder: Path | None,
    watch: Watch,
) -> dict[str, Any]:  # fmt: skip
    """What each drafter brings after every text and its first question: tokens a pass, and its speed beside plain
    decoding just before it, with 95 % intervals. best: the quickest that is surely quicker than none; None for none.

    Where the plan refuses drafts, `refused` says why. Finished texts are kept in `folder`.
    """
    try:
        Cache(model, plan).refuse_drafts()
    except HeadwiseError as refusal:
        return {"refused": str(refusal), "tried": [], "best": None}
    key = f"drafts-{digest([plan.digest, list(drafts)])}"
    found: dict[str, list[dict[str, float]]] = {draft: [] for draft in drafts}
    for number, text in enumerate(texts):
        watch("drafts after the texts", number, len(texts))

        def one(text: Recall = text) -> dict[str, Any]:
            return {"drafts": _after(model, plan, text, drafts)}

        for draft, row in zip(drafts, once(folder, f"{key}-{number}", one)["drafts"], strict=True):
            found[draft].append(row)
    tried = [_row(draft, rows) for draft, rows in found.items()]
    paying = [row for row in tried if row["speed"]["low"] > 1]
    best = max(paying, key=lambda row: row["speed"]["mean"])["draft"] if paying else None
    return {"refused": "", "tried": tried, "best": best}


def _after(model: PreTrainedModel, plan: Plan, text: Recall, drafts: Sequence[str]) -> list[dict[str, float]]:
    """Tokens a pass and speed of every drafter after one text."""
    cache, ids = Cache(model, plan), text.ids
    logits = prefill(model, cache, ids, None)
    for question, _ in text.asked[:1]:
        ids, logits = torch.cat((ids, question), dim=1), feed(model, cache, question)
    rows = []
    for draft in drafts:
        plain = _seconds(lambda: decode(model, cache.fork(), logits, NEW))
        fork = cache.fork()
        before = 0 if fork.session is None else fork.session.ledger.steps["decode"]
        seconds = _seconds(lambda fork=fork, draft=draft: write(model, fork, logits, NEW, draft, ids))  # type: ignore[misc]
        assert fork.session is not None
        passes = fork.session.ledger.steps["decode"] - before
        brought = fork.session.seen[0] - ids.shape[1]
        rows.append({"tokens": brought / max(1, passes), "speed": plain / seconds})
    return rows


def _seconds(run: Callable[[], Any]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


def _row(draft: str, rows: Sequence[dict[str, float]]) -> dict[str, Any]:
    told = {name: asdict(of_strata([[row[name] for row in rows]])) for name in ("tokens", "speed")}
    return {"draft": draft, **told}


def draft_lines(found: dict[str, Any]) -> list[str]:
    """What was tried and which drafter pays, as text."""
    if found["refused"]:
        return [f"no drafts were tried: {found['refused']}"]
    lines = ["tokens a pass   speed beside none, and its 95 % interval   drafter"]
    for row in found["tried"]:
        speed = row["speed"]
        interval = f"{speed['mean']:.2f} ({speed['low']:.2f} to {speed['high']:.2f})"
        lines.append(f"{row['tokens']['mean']:13.2f}   {interval:43}   {row['draft']}")
    if found["best"] is None:
        return [*lines, "no drafter is surely quicker than none here: decode without"]
    return [*lines, f'"{found["best"]}" pays: give --draft "{found["best"]}" to `headwise run`']
