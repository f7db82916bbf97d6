"""A judged arranger as the cells of a table."""

from __future__ import annotations

from typing import Any

COLUMNS = (
    "arranger",
    "right, %",
    "more than as given",
    "found first, %",
    "AUC",
    "share of text",
    "proof kept, %",
    "passes",
)


def cells(row: dict[str, Any]) -> list[str]:
    """One row of `judged`, for people: intervals are 95 %."""
    if "refused" in row:
        return [row["method"], f"refused: {row['refused']}", *[""] * (len(COLUMNS) - 2)]
    first, auc = row["first"], row["auc"]
    return [
        row["method"],
        _percent(row["right"]),
        _percent(row["gain"], sign="+"),
        "" if first is None else _percent(first),
        "" if auc is None else f"{auc['mean']:.3f}",
        f"{row['share']:.2f}",
        f"{100 * row['proof']:.0f}",
        f"{row['passes']:.1f}",
    ]


def _percent(interval: dict[str, Any], sign: str = "") -> str:
    mean, low, high = (100 * interval[name] for name in ("mean", "low", "high"))
    return f"{mean:{sign}.0f} [{low:{sign}.0f}, {high:{sign}.0f}]"
