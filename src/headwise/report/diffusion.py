"""What ways of sampling a masked-diffusion model came to, as a table and as a picture of quality over forwards.

`python -m headwise.report.diffusion diffusion.json docs/data/decode/diffusion.json docs/diffusion.png` makes both of
what `headwise diffuse --out diffusion.json` wrote; of several results both have all texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from headwise.report.results import write_results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = (
    "text", "way", "quality", "forwards an answer", "tokens a block", "beside", "same texts", "quality over it",
    "forwards over it",
)  # fmt: skip


def cells(text: str, row: Mapping[str, Any]) -> list[str]:
    """A way as a row of the table."""
    quality = row["quality"]
    shown = [
        text,
        row["name"],
        f"{100 * quality['mean']:.1f} % ({100 * quality['low']:.0f} to {100 * quality['high']:.0f})",
        f"{row['calls']['mean']:.1f}",
        f"{row['block']:.1f}",
    ]
    if row["beside"] is None:
        return [*shown, "", "", "", ""]
    gap, calls = row["quality_over"], row["calls_over"]
    return [
        *shown,
        row["beside"],
        f"{100 * sum(row['same']) / len(row['same']):.0f} %",
        f"{100 * gap['mean']:+.1f} [{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}]",
        f"{calls['mean']:+.1f} [{calls['low']:+.1f}, {calls['high']:+.1f}]",
    ]


def joined(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Results of one machine as one, with the texts of all."""
    command = "; ".join(result["command"] for result in results)
    lists = {name: [one for result in results for one in result[name]] for name in ("texts", "findings")}
    return {**results[0], "command": command, **lists}


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """All rows of a result."""
    return [cells(one["text"], row) for one in result["texts"] for row in one["ways"]]


def figures(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result as a table of figures for the docs."""
    return {
        "source": ", ".join(f"{one['questions']} held texts of {one['text']}" for one in result["texts"]),
        "command": result["command"],
        "machine": ", ".join(f"{key} {value}" for key, value in result["machine"].items()),
        "date": date.today().isoformat(),
        "model": "a masked-diffusion host of four layers, trained for each text",
        "columns": list(COLUMNS),
        "rows": rows(result),
        "findings": result["findings"],
    }


def picture(result: Mapping[str, Any]) -> Figure:
    """A panel a text: quality over forwards, a point a way."""
    from matplotlib.figure import Figure

    from headwise.report.pictures import INK, PALE

    figure = Figure(figsize=(6.4 * len(result["texts"]), 4.2), layout="constrained")
    for axes, one in zip(figure.subplots(1, len(result["texts"]), squeeze=False)[0], result["texts"], strict=True):
        for number, row in enumerate(one["ways"]):
            quality, calls = row["quality"], row["calls"]["mean"]
            low, high = quality["mean"] - quality["low"], quality["high"] - quality["mean"]
            error = [[100 * max(low, 0)], [100 * max(high, 0)]]
            mark = "osD^vPX*<>hd"[number % 12]
            axes.errorbar(calls, 100 * quality["mean"], yerr=error, fmt=mark, ms=6, lw=1, capsize=2, label=row["name"])
        axes.set_xlabel("forwards an answer", fontsize=9)
        axes.set_ylabel("quality, %", fontsize=9)
        axes.set_title(f"{one['text']}, {one['questions']} held texts", fontsize=10, color=INK)
        axes.grid(color=PALE, lw=0.5, alpha=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def main() -> None:
    """Write the table and the picture of a result."""
    write_results(__doc__, lambda results: figures(joined(results)), lambda results: picture(joined(results)))


if __name__ == "__main__":
    main()
