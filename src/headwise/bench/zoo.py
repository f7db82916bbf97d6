"""The matrix of models: every class of the installed transformers, examined one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headwise.bench.provenance import versions
from headwise.kept import once
from headwise.seams.transformers.zoo import Sort, Specimen, examine, specimens
from headwise.watch import Watch


def chosen(sorts: Iterable[Sort], words: Sequence[str]) -> list[Specimen]:
    """All specimens of these sorts, or those whose model type holds one of `words`."""
    found = [one for sort in sorts for one in specimens(sort)]
    return [one for one in found if not words or any(word in one.model_type for word in words)]


def matrix(listed: Sequence[Specimen], folder: Path | None, watch: Watch) -> dict[str, Any]:
    """What came of each as plain JSON data; those that `folder` holds already are taken over."""
    rows = []
    for done, one in enumerate(listed):
        watch(one.kind, done, len(listed))
        key = f"{one.sort}-{one.model_type}"
        rows.append(once(folder, key, lambda one=one: asdict(one) | asdict(examine(one))))  # type: ignore[misc]
    watch("examined", len(listed), len(listed))
    return {"transformers": versions()["transformers"], "counts": counts(rows), "rows": rows}


def counts(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """How often each verdict was given, by sort."""
    found: dict[str, Counter[str]] = {}
    for row in rows:
        found.setdefault(row["sort"], Counter())[row["found"]] += 1
    return {sort: dict(one) for sort, one in found.items()}
