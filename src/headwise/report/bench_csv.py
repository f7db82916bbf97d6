"""A comparison as one flat table: a line for each row on each task at each length, for pandas, R or a spreadsheet."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from headwise.files import write_text
from headwise.report.bench_table import verdict
from headwise.report.terminal import visible

COLUMNS = (
    "model", "fingerprint", "data", "seed",  # of the whole result, so that several can be put together
    "method", "recipe", "role", "peer",  # of the row
    "task", "context", "score", "low", "high", "asks", "chance", "truncated", "refused",  # of the row on this task
    "row_score", "row_low", "row_high", "row_asks", "row_truncated",  # of the row over its tasks
    "row_cache_bytes", "row_of_dense", "row_byte_steps_of_dense", "row_output_tokens_of_dense", "row_verdict",
)  # fmt: skip

FORMULA = ("=", "+", "-", "@", "\t", "\n")


def flat(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A dict of COLUMNS for each row, task and length; where a row was refused its figures are None."""
    protocol = result["protocol"]
    whole = {
        "model": protocol["model"]["name"],
        "fingerprint": protocol["hashes"]["model"],
        "data": protocol["hashes"]["data"],
        "seed": protocol["seeds"]["items"],
    }
    lines = []
    for row in result["rows"]:
        head = dict.fromkeys(COLUMNS) | whole | _of_row(row)
        lines += [head | _of_task(task) for task in row.get("tasks", {}).values()]
        for place, why in row["refused"].items():
            task, _, context = place.rpartition(" ")
            lines.append(head | {"task": task, "context": int(context), "refused": why})
    return lines


def write_csv(result: dict[str, Any], path: Path) -> None:
    """Write `flat(result)` as a CSV file with a header (RFC 4180, UTF-8); an empty field is a missing value.

    A text that a spreadsheet would take for a formula begins with an apostrophe; numbers are as they are.
    """
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows({name: _cell(value) for name, value in line.items()} for line in flat(result))
    write_text(path, text.getvalue())


def _cell(value: Any) -> Any:
    """A value that no spreadsheet runs: a text that begins as a formula may follows an apostrophe."""
    if not isinstance(value, str):
        return value
    text = visible(value)  # a carriage return would end the line for some readers
    return f"'{text}" if text.startswith(FORMULA) else text


def _of_row(row: dict[str, Any]) -> dict[str, Any]:
    told = {"method": row["name"], "recipe": row["recipe"], "role": row["role"], "peer": row["peer"] or None}
    told["row_verdict"] = verdict(row)
    if "overall" in row:
        overall = row["overall"]
        told |= {f"row_{key}": overall[own] for key, own in (("score", "mean"), ("low", "low"), ("high", "high"))}
        names = ("asks", "truncated", "cache_bytes", "of_dense", "byte_steps_of_dense", "output_tokens_of_dense")
        told |= {f"row_{name}": row[name] for name in names}
    return told


def _of_task(task: dict[str, Any]) -> dict[str, Any]:
    same = {name: task[name] for name in ("task", "context", "low", "high", "chance", "truncated")}
    return same | {"score": task["mean"], "asks": task["count"]}
