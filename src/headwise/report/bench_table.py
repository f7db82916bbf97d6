"""The rows of a comparison as columns of text, the same words in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.table import Table

from headwise.report.terminal import plain
from headwise.shapes import format_bytes

Cell = Callable[[dict[str, Any]], str]


def score(interval: dict[str, Any]) -> str:
    """`0.62 (0.50 to 0.73)`."""
    return f"{interval['mean']:.2f} ({interval['low']:.2f} to {interval['high']:.2f})"


def verdict(row: dict[str, Any]) -> str:
    """What is said of a row: refused, flagged, or how sure its lead is."""
    if "overall" not in row:
        return "REFUSED: no budget this small"
    partly = f" (refused at {', '.join(row['refused'])})" if row["refused"] else ""
    if "verdict" not in row:
        return {"dense": "full attention", "baseline": "baseline, equal bytes", "control": "A/A control: equals dense"}[
            row["role"]
        ] + partly
    found = row["verdict"]
    return ("FLAG: " if found["flagged"] else "") + found["words"] + ("" if found["certain"] else " (unsure)") + partly


COLUMNS: tuple[tuple[str, Cell], ...] = (
    ("method", lambda row: row["name"]),
    ("score (95 %)", lambda row: score(row["overall"])),
    ("cache", lambda row: format_bytes(row["cache_bytes"])),
    ("of dense", lambda row: f"{row['of_dense']:.1%}"),
    ("byte-steps of dense", lambda row: f"{row['byte_steps_of_dense']:.1%}"),
    ("output length", lambda row: f"{row['output_tokens_of_dense'] - 1:+.1%}"),
    ("truncated", lambda row: f"{row['truncated']}/{row['asks']}"),
)


def cells(row: dict[str, Any]) -> list[str]:
    """One text for each of COLUMNS and the verdict; a refused row has its name and its verdict."""
    figures = [cell(row) if place == 0 or "overall" in row else "" for place, (_, cell) in enumerate(COLUMNS)]
    return [*figures, verdict(row)]


def terminal_table(result: dict[str, Any]) -> Table:
    """The rows for a terminal, methods at one budget together with their baselines."""
    protocol = result["protocol"]
    title = f"{protocol['model']['name']}: {len(protocol['settings']['tasks'])} tasks, contexts "
    title += ", ".join(map(str, protocol["settings"]["contexts"]))
    heading = plain(title, "table.title")
    table = Table(title=heading, title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for place, name in enumerate([*(name for name, _ in COLUMNS), "verdict"]):
        side = place in (0, len(COLUMNS))
        table.add_column(name, justify="left" if side else "right", no_wrap=place == 0, overflow="fold")
    for row in by_peer(result["rows"]):
        table.add_row(*map(plain, cells(row)))
    return table


def by_peer(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Dense and control first, then every group of rows of equal bytes, in the order of its first row."""
    peers = list(dict.fromkeys(row["peer"] for row in rows if row["role"] in ("plan", "baseline")))
    whole = [row for row in rows if row["role"] in ("dense", "control")]
    return whole + [row for peer in peers for row in rows if row["peer"] == peer and row not in whole]


def notes(result: dict[str, Any]) -> list[str]:
    """What a reader must know beside the table."""
    rows = result["rows"]
    dense = next(row for row in rows if row["role"] == "dense")
    kinds = dict.fromkeys([dense["overall"]["kind"], *(task["kind"] for task in dense["tasks"].values())])
    lines = [
        "score: mean over tasks, 0 to 1; intervals: " + ", ".join(kinds) + "; of differences: bootstrap of paired asks",
        "byte-steps: bytes held, summed over all steps after the prompt, of what dense attention held; output length: "
        "change of the tokens written",
        "a selection is held against evictions that keep as many tokens as it reads; it holds all bytes itself",
        "A/A control passed: a plan that evicts nothing wrote what dense attention wrote, token for token",
    ]
    lines += frontier(result["frontier"])
    flagged = [row["name"] for row in rows if row.get("verdict", {}).get("flagged")]
    if flagged:
        lines.append(f"flagged, {len(flagged)} rows not better than a baseline: {', '.join(flagged)}")
    for task in dense["tasks"].values():
        if task["low"] <= task["chance"]:
            lines.append(
                f"dense attention itself scores {score(task)} on {task['task']} at {task['context']}: no better than "
                "chance, so this task tells nothing of a method"
            )
    return lines


def frontier(found: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each task: the most bytes that a method spares without being certainly below dense attention there."""
    lines = []
    for task, best in found.items():
        told = f"{best['sparsity']:.1%} of bytes, {', '.join(best['recipes'])}" if best["sparsity"] else "none compared"
        lines.append(f"highest sparsity not certainly below dense, {task}: {told}")
    return lines
