"""The rows of a run as columns of text: the same words in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.table import Table

from headwise.report.terminal import plain
from headwise.shapes import format_bytes

WIDE = 106  # columns of a terminal that holds every column of the table
SPARED = ("predicted", "peak")
Cell = Callable[[dict[str, Any]], str]
ROLES = {
    "dense": "full attention",
    "plan": "the plan",
    "baseline": "baseline, equal bytes",
    "control": "A/A control, evicts nothing",
}


def _share(row: dict[str, Any]) -> str:
    return f"{row['cache_bytes'] / row['dense_bytes']:.1%}"


def _rate(row: dict[str, Any]) -> str:
    return "" if row["decode_tokens_per_s"] is None else f"{row['decode_tokens_per_s']:.1f}"


def _answers(row: dict[str, Any]) -> str:
    return "" if row["answers_total"] is None else f"{row['answers_right']}/{row['answers_total']}"


def _perplexity(row: dict[str, Any]) -> str:
    value = row["perplexity"]
    return "" if value is None else f"{value:.2f}" if value < 1e4 else f"{value:.2g}"


COLUMNS: tuple[tuple[str, Cell], ...] = (
    ("recipe", lambda row: row["recipe"]),
    ("prefill s", lambda row: f"{row['prefill_s']:.2f}"),
    ("tokens/s", _rate),
    ("cache", lambda row: format_bytes(row["cache_bytes"])),
    ("of dense", _share),
    ("predicted", lambda row: format_bytes(row["predicted_bytes"])),
    ("peak", lambda row: format_bytes(row["peak_bytes"])),
    ("answers", _answers),
    ("perplexity", _perplexity),
    ("tokens kept", lambda row: f"{row['kept_share']:.1%}"),
)


def columns(rows: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """(title, one text a row) of every column that says anything."""
    filled = [(title, [cell(row) for row in rows]) for title, cell in COLUMNS]
    return [(title, texts) for title, texts in filled if any(texts)]


def terminal_table(result: dict[str, Any], width: int) -> Table:
    """The rows of a run for a terminal of `width` columns; a narrow one leaves out what the JSON still says."""
    heading = plain(f"{result['title']} ({result['prompt_tokens']} tokens)\n", "table.title")
    table = Table(title=heading, title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    shown = [(title, texts) for title, texts in columns(result["rows"]) if width >= WIDE or title not in SPARED]
    for title, _ in shown:
        first = title == "recipe"
        table.add_column(
            title.replace(" ", "\n").replace("/", "\n/"),
            justify="left" if first else "right",
            overflow="fold",
            no_wrap=not first,
        )
    for texts in zip(*(texts for _, texts in shown), strict=True):
        table.add_row(*map(plain, texts))
    return table


def notes(result: dict[str, Any]) -> list[str]:
    """What a reader must know beside the table."""
    rows = result["rows"]
    dense = format_bytes(rows[0]["dense_bytes"])
    lines = [f"dense keys and values of this prompt: {dense}; cache bytes are of real storages, positions included"]
    lines += [f"{row['recipe']}: {remark}" for row in rows for remark in row.get("remarks", ())]
    baselines = [row for row in rows if row["role"] == "baseline"]
    if baselines:
        shown = (row for row in rows if row["role"] in ("plan", "baseline"))
        held = ", ".join(f"{row['recipe']} {row['predicted_bytes']} B" for row in shown)
        lines.append(f"baselines are fitted to the bytes predicted for the plan: {held}")
    if any(row["role"] == "control" for row in rows):
        lines.append("A/A control passed: a plan that evicts nothing wrote what dense attention wrote, token for token")
    if any(row.get("moved_per_token") for row in rows):
        moved = ", ".join(f"{row['recipe']} {format_bytes(row['moved_per_token'])}" for row in rows)
        lines.append(f"carried between memory and the file at each new token: {moved}")
    return lines
