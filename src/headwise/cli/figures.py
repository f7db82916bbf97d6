"""Tables of measured figures in the docs, rendered from the JSON of the run that gave them.

A page has the lines `<!-- figures: NAME -->` and `<!-- end -->`, and `make docs` writes between them the table of
docs/data/NAME.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from headwise.convert.tables import latent_table, starts_table
from headwise.errors import HeadwiseError
from headwise.files import read_json, read_text
from headwise.report.fronts import scores_table
from headwise.report.layers_table import table as layers_table

FIX = "give it the fields of headwise/cli/figures.py, `Figures`"
OPENING = re.compile(r"^<!-- figures: (\S+) -->$", re.MULTILINE)
BLOCK = re.compile(rf"{OPENING.pattern}.*?^<!-- end -->$", re.MULTILINE | re.DOTALL)


COMPARED = (  # of `compare-layers`
    "layers", "sparse", "states", "hybrid_layers", "variants", "recall", "high_rate", "shared_heads", "based",
    "based_again",
)  # fmt: skip


class Figures(BaseModel):
    """A table of figures and where it comes from.

    source: the run, or the page that it was copied from. command, machine, model, date: of that run, where they are
    known. rows: a cell for each column. findings: what the run shows of published systems, see `headwise/findings.py`.
    """

    model_config = ConfigDict(extra="forbid")

    source: str
    command: str | None
    machine: str | None
    date: str | None
    model: str | None = None
    columns: list[str]
    rows: list[list[str | float | int]]
    findings: list[dict[str, Any]] = []

    def table(self) -> str:
        """The table in Markdown."""
        if odd := [row for row in self.rows if len(row) != len(self.columns)]:
            raise HeadwiseError(f"the row {odd[0]} has not {len(self.columns)} cells; write one for each column")
        rows: list[Sequence[str | float | int]] = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join(_line(row) for row in rows)


def filled(page: str, data: Path) -> str:
    """A page with every table of figures written anew from its JSON in the folder `data`."""
    if BLOCK.findall(page) != (names := OPENING.findall(page)):
        raise HeadwiseError(f"one of the tables of figures {names} has no end; close it by a line `<!-- end -->`")
    return BLOCK.sub(lambda found: f"<!-- figures: {found[1]} -->\n{_table(data, found[1])}\n<!-- end -->", page)


def _line(row: Sequence[str | float | int]) -> str:
    cells = (str(cell).replace("|", "\\|") for cell in row)
    return "| " + " ".join(f"{cell} |" if cell else "|" for cell in cells)


def _table(data: Path, name: str) -> str:
    path = data / f"{name}.json"
    if name in COMPARED:
        return layers_table(json.loads(read_text(path)))
    if name.startswith("convert/"):
        return (starts_table if name.startswith("convert/starts") else latent_table)(json.loads(read_text(path)))
    if name == "keep_less":  # its run writes what the picture beside it is drawn from
        return scores_table(json.loads(read_text(path)))
    return read_json(path, Figures, fix=FIX).table()
