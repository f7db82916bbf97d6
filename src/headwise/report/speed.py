"""Whole models beside what one would pick instead: tables and a picture of what `benchmarks/peers.py` measured.

`python -m headwise.report.speed smollm2.json gemma3.json docs/data/speed docs/speed.png` writes a table of figures for
each result, under its file's name, and one picture of all.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headwise.files import write_bytes, write_text
from headwise.report.pictures import as_png, literal

OWN, OTHERS = "#1a7f4b", "#7d8592"
NAMES = {"openvino": "OpenVINO GenAI", "llamacpp": "llama.cpp", "transformers": "transformers, sdpa"}
BASE = "headwise"  # what ratios are of


def figures(result: Mapping[str, Any]) -> dict[str, Any]:
    """One result as a table of figures: a row for each contender, a column for each work, in ms or s and times
    headwise's own in the same run."""
    works = result["results"]
    contenders = list(dict.fromkeys(name for found in works.values() for name in found))
    rows = [[shown(name), *(_cell(found, name) for found in works.values())] for name in contenders]
    machine = result["machine"]
    return {
        "source": "benchmarks/peers.py, all contenders in turns in one run",
        "command": result["command"],
        "machine": f"{machine['processor']}, {result['threads']} threads",
        "date": result["date"],
        "model": result["model"],
        "columns": ["", *works],
        "rows": rows,
    }


def shown(contender: str) -> str:
    """A contender as tables name it."""
    peer, *arm = contender.split(", ", 1)
    return ", ".join([NAMES.get(peer, peer), *arm])


def _cell(found: Mapping[str, Any], name: str) -> str:
    if name not in found:
        return ""
    seconds, own = found[name]["median_s"], found[BASE]["median_s"]
    time = f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
    return time if name == BASE else f"{time} ({seconds / own:.2f} x)"


def picture(results: Mapping[str, Mapping[str, Any]]) -> Figure:
    """A row of panels for each model, one for each work, contenders as bars with the range of their times."""
    most = max(len(result["results"]) for result in results.values())
    figure = Figure(figsize=(4.6 * most, 4.0 * len(results)), layout="constrained")
    grid = figure.subplots(len(results), most, squeeze=False)
    for line, (model, result) in zip(grid, results.items(), strict=True):
        for axes, (work, found) in zip(line, result["results"].items(), strict=False):
            _bars(axes, found)
            axes.set_title(literal(f"{model}: {work}"), fontsize=10)
        for axes in line[len(result["results"]) :]:
            axes.set_axis_off()
    return figure


def _bars(axes: Axes, found: Mapping[str, Any]) -> None:
    ordered = sorted(found, key=lambda name: -found[name]["median_s"])
    medians = [found[name]["median_s"] * 1000 for name in ordered]
    spread = [[m - found[name]["low_s"] * 1000 for m, name in zip(medians, ordered, strict=True)],
              [found[name]["high_s"] * 1000 - m for m, name in zip(medians, ordered, strict=True)]]  # fmt: skip
    colours = [OWN if name.startswith(BASE) else OTHERS for name in ordered]
    axes.barh(range(len(ordered)), medians, color=colours, xerr=spread, error_kw={"ecolor": "#333", "elinewidth": 0.8})
    axes.set_yticks(range(len(ordered)), [literal(shown(name)) for name in ordered], fontsize=8)
    axes.set_xlabel("ms, less is better")


def main() -> None:
    """Write the tables and the picture of results."""
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("results", type=Path, nargs="+")
    reader.add_argument("folder", type=Path)
    reader.add_argument("picture", type=Path)
    given = reader.parse_args()
    results = {path.stem: json.loads(path.read_text()) for path in given.results}
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, result in results.items():
        write_text(given.folder / f"{name}.json", re.sub(r"\n {3,}", " ", json.dumps(figures(result), indent=1)) + "\n")
    write_bytes(given.picture, as_png(picture(results)))


if __name__ == "__main__":
    main()
