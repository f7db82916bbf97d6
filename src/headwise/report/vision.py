"""What `headwise vision judge` found, as rows of a table.

`python -m headwise.report.vision vision.json docs/data/vision` makes the two tables of figures of docs/vision.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

COLUMNS = {
    "pruned": ("what is left out", "right", "over the model, points", "over controls, points", "tokens a layer",
               "pairs scored", "bytes held", "of the asked thing kept"),
    "steered": ("task", "what answers", "right", "says what habit says", "over the model, points",
                "over controls, points"),
}  # fmt: skip
DENSE = "as it is"


def cells(row: dict[str, Any], asked: str, whole: dict[str, Any] | None = None) -> list[str]:
    """A row for people. whole: what a prompt takes of which nothing is left out."""
    over = dict(row["over"])
    first = over.pop(DENSE, None)
    told = [_percent(row["right"]["mean"])]
    beside = [
        "" if first is None else _points(first),
        "; ".join(f"{_points(one)} over {name}" for name, one in over.items()),
    ]
    if asked == "steered":
        habit = "" if row["habit"] is None else _percent(row["habit"]["mean"])
        return [row["task"], row["arm"], *told, habit, *beside]
    if row["tokens"] is None or whole is None:
        return [_short(row["arm"]), *told, *beside, "", "", "", ""]
    shares = [_percent(row[what] / whole[what]) for what in ("pairs", "bytes")]
    covered = "" if not row["last"] or row["covered"] is None else _percent(row["covered"])
    return [_short(row["arm"]), *told, *beside, f"{row['tokens']:.1f}", *shares, covered]


def _short(arm: str) -> str:
    return "dyvte" if arm.startswith("dyvte(") else arm


def _percent(mean: float) -> str:
    return f"{100 * mean:.0f} %"


def _points(found: dict[str, Any]) -> str:
    mean, low, high = (100 * found[name] for name in ("mean", "low", "high"))
    return f"{mean:+.0f} [{low:+.0f}, {high:+.0f}]"


def table(found: dict[str, Any], asked: str) -> list[list[str]]:
    """The rows of a set."""
    rows: Sequence[dict[str, Any]] = found[asked]
    return [cells(row, asked, found["whole"]) for row in rows]


def figures(found: dict[str, Any], asked: str) -> dict[str, Any]:
    """A set as a table of figures, with what it shows of published systems."""
    from headwise.report.vision_findings import findings  # not above, as in `main`

    facts = {
        "command": "make vlm",
        "machine": ", ".join(f"{key} {value}" for key, value in found["machine"].items()),
        "date": date.today().isoformat(),
    }
    return {
        "source": f"{found['questions']} questions a task, on pictures that were not trained on",
        **facts,
        "model": f"the small vision-language model of `make vlm`, {found['model']}",
        "columns": list(COLUMNS[asked]),
        "rows": table(found, asked),
        "findings": findings(found, asked, facts),
    }


def main() -> None:
    """Write the tables of a result."""
    from headwise.files import write_text  # not above: the command's help loads this file, and torch with that one

    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("result", type=Path)
    reader.add_argument("folder", type=Path)
    given = reader.parse_args()
    found = json.loads(given.result.read_text(encoding="utf-8"))
    given.folder.mkdir(parents=True, exist_ok=True)
    for asked in COLUMNS:
        write_text(
            given.folder / f"{asked}.json", json.dumps(figures(found, asked), indent=1, ensure_ascii=False) + "\n"
        )


if __name__ == "__main__":
    main()
