"""Results of a command, made into the docs' table of figures and a picture: `python -m headwise.report.NAME RESULT ...
TABLE PICTURE`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Results = list[dict[str, Any]]


def write_results(
    said: str | None, figures: Callable[[Results], dict[str, Any]], picture: Callable[[Results], Figure]
) -> None:
    """Write what both make of the results that the command line names. said: its description."""
    from headwise.files import write_bytes, write_text  # not above: the help of commands loads what calls this
    from headwise.report.pictures import as_png

    reader = argparse.ArgumentParser(description=said, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("results", nargs="+", type=Path)
    for name in ("table", "picture"):
        reader.add_argument(name, type=Path)
    given = reader.parse_args()
    texts = [path.read_text(encoding="utf-8") for path in given.results]
    results = [json.loads(text) for text in texts]
    write_text(given.table, json.dumps(figures(results), indent=1, ensure_ascii=False) + "\n")
    write_bytes(given.picture, as_png(picture(results), dpi=110, source="".join(texts).encode()))
