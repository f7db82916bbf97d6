"""What the ways to choose tokens came to, as a table and as a picture: answers that are right beside texts that are
near to a human's.

`python -m headwise.report.decoding found.json docs/data/decode/ways.json docs/ways.png` makes both of what
`headwise compare-decoding --out found.json` wrote; of several results the table has all, the picture a panel each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from headwise.report.results import write_results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("model", "way", "code of", "right answers", "surprise", "from the human's", "diversity", "from the human's")


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """The rows of a result, with the human's text last."""
    made = [_cells(result["model"], row) for row in result["ways"]]
    human = result["human"]
    return [
        *made,
        [result["model"], "the text itself", "", "", f"{human['surprise']:.2f}", "", f"{human['diversity']:.2f}", ""],
    ]


def _cells(model: str, row: Mapping[str, Any]) -> list[str]:
    right, gap = row["closed"], row["gap"]
    return [
        model,
        row["name"],
        row["by"],
        f"{100 * right['mean']:.0f} % ({100 * right['low']:.0f} to {100 * right['high']:.0f})",
        f"{row['open']['surprise']:.2f}",
        _interval(gap["surprise"]),
        f"{row['open']['diversity']:.2f}",
        _interval(gap["diversity"]),
    ]


def _interval(one: Mapping[str, Any]) -> str:
    return f"{one['mean']:.2f} ({one['low']:.2f} to {one['high']:.2f})"


def remark(result: Mapping[str, Any]) -> str:
    """What the result says of the two tasks, in a sentence or two."""
    lead, best = result["deterministic_over_drawn"], result["best_deterministic_over_best_drawn"]
    return (
        f"{result['model']}: most answers right by {result['best_closed']}, nearest to the human's text "
        f"{result['best_open']}. Ways that draw nothing over those that draw, on answers: {_points(lead)}; the best of "
        f"each: {_points(best)}."
    )


def _points(one: Mapping[str, Any]) -> str:
    return f"{100 * one['mean']:+.1f} points [{100 * one['low']:+.1f}, {100 * one['high']:+.1f}]"


def figures(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Results as one table of figures for the docs."""
    first = results[0]
    return {
        "source": f"{first['questions']} prompts of each task",
        "command": "; ".join(result["command"] for result in results),
        "machine": ", ".join(f"{key} {value}" for key, value in first["machine"].items()),
        "date": date.today().isoformat(),
        "model": ", ".join(result["model"] for result in results),
        "columns": list(COLUMNS),
        "rows": [row for result in results for row in rows(result)],
        "findings": [one for result in results for one in result["findings"]],
    }


def picture(results: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel a model: right answers over how far texts are from the human's, a point a way."""
    from matplotlib.figure import Figure

    from headwise.report.pictures import INK, PALE

    figure = Figure(figsize=(6.6 * len(results), 4.2), layout="constrained")
    for axes, result in zip(figure.subplots(1, len(results), squeeze=False)[0], results, strict=True):
        for number, row in enumerate(result["ways"]):
            gap, mark = row["gap"]["surprise"]["mean"], "osD^vPX*<>hdp"[number % 13]
            filled = "none" if row["draws"] else None
            axes.plot(gap, 100 * row["closed"]["mean"], mark, ms=7, mfc=filled, label=row["name"])
        axes.set_xlabel("nats a token from the human's surprise; hollow: drawn", fontsize=9)
        axes.set_ylabel("right answers, %", fontsize=9)
        axes.set_title(result["model"], fontsize=10, color=INK)
        axes.grid(color=PALE, lw=0.5, alpha=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def main() -> None:
    """Write the table and the picture of results."""
    write_results(__doc__, figures, picture)


if __name__ == "__main__":
    main()
