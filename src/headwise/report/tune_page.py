"""A tuning as one HTML file: what was tried, who got what and why. Readable without colours, offline and in print."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headwise.files import write_text
from headwise.report.html import document, table
from headwise.report.pictures import INK, KEPT, PALE, as_png, squared
from headwise.shapes import format_bytes

LOOKS = {  # shapes tell what colours do
    "dense": ("s", "#5b6270", "dense attention"),
    "tuned": ("o", "#0b6fb8", "a recipe for every head"),
    "rival": ("x", "#d9822b", "one recipe for all heads"),
}


def write_page(result: dict[str, Any], path: Path) -> None:
    """Write the page of a tuning's JSON object."""
    write_text(path, page(result))


def page(result: dict[str, Any]) -> str:
    """The whole page."""
    name, chosen = Path(result["model"]).name or result["model"], result["chosen"]
    title = f"headwise tune: {name}"
    told = (
        f"{format_bytes(result['budget'])} of cache were allowed for prompts of {result['tokens']} tokens, which dense "
        f"attention needs {format_bytes(result['dense_bytes'])} for. The plan takes {format_bytes(chosen['held'])} "
        f"({chosen['of_dense']:.1%}), loses {chosen['loss']:.4f} nats by answer token and answers "
        f"{chosen['right']:.1%}; dense attention answers {result['trials'][0]['right']:.1%}, and the plan keeps "
        f"{chosen['kept']:.1%} of these."
    )
    if result["sliding"]:
        told += (
            f" {result['sliding']:.1%} of dense bytes lie in sliding layers, where a plan chooses the codec and not "
            "the tokens."
        )
    if (seconds := result["seconds"]) is not None:
        told += (
            f" A token then takes {1e3 * seconds['taken']:.1f} ms on the machine it was tuned on, where "
            f"{1e3 * seconds['allowed']:g} ms were allowed."
        )
    parts = [f"<h1>{escape(title)}</h1><p>{escape(told)}</p>", _tried(result), _heads(result), _facts(result)]
    return document(title, "\n".join(parts))


def _tried(result: dict[str, Any]) -> str:
    """The front as a picture and a table."""
    lines = []
    for one in sorted(result["trials"], key=lambda trial: trial["held"]):
        kind = "plan" if one == result["chosen"] else one["role"]
        predicted = "" if one["predicted"] is None else f"{one['predicted']:.4f}"
        cells = (
            format_bytes(one["held"]),
            f"{one['of_dense']:.1%}",
            predicted,
            f"{one['loss']:.4f}",
            f"{one['right']:.1%}",
        )
        what = f"<td>{escape(one['name'])}<small>{escape(LOOKS[one['role']][2])}</small></td>"
        lines.append(f'<tr class="{kind}">{what}{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    head = ("plan", "bytes", "of dense", "estimated loss", "measured loss", "answers right")
    return (
        "<h2>What was tried</h2><p>Loss: nats by answer token between dense attention's next-token distributions and "
        "the plan's, on the tuning documents. The line is the front: nothing below and left of it.</p>"
        + _image(_front(result), "Scatter of measured loss over bytes for everything that was tried")
        + table(head, lines, "what was tried")
    )


def _front(result: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    for role, (mark, colour, label) in LOOKS.items():
        own = [one for one in result["trials"] if one["role"] == role]
        places = [100 * one["of_dense"] for one in own]
        axes.scatter(places, [one["loss"] for one in own], marker=mark, s=36, color=colour, label=label)
    best = result["front"]
    axes.plot([100 * one["of_dense"] for one in best], [one["loss"] for one in best], color=INK, linewidth=1,
              drawstyle="steps-post", zorder=0)  # fmt: skip
    axes.axvline(100 * result["budget"] / result["dense_bytes"], color=PALE, linestyle="--", zorder=0)
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("bytes, % of dense attention (dashed: what was allowed)")
    axes.set_ylabel("loss, nats by answer token")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _heads(result: dict[str, Any]) -> str:
    """Who got what, by letter and shade, beside what each head would lose under the cheapest candidate."""
    kinds = sorted({recipe for row in result["recipes"] for recipe in row})
    letters = {recipe: _letter(place) for place, recipe in enumerate(kinds)}
    marks = [[letters[recipe] for recipe in row] for row in result["recipes"]]
    pictures = []
    if result["head_bytes"] is not None:
        most = result["dense_bytes"] / sum(map(len, marks))
        shares = [[100 * held / most for held in row] for row in result["head_bytes"]]
        pictures.append(_map(shares, marks, "bytes of each head, % of a dense one"))
    worth = [[f"{loss:.3f}" for loss in row] for row in result["head_losses"]]
    pictures.append(_map(result["head_losses"], worth, "why: loss under the cheapest candidate, nats"))
    counts = {recipe: sum(row.count(recipe) for row in result["recipes"]) for recipe in kinds}
    legend = "".join(f"<dt>{letters[r]}</dt><dd>{escape(r)} ({counts[r]} heads)</dd>" for r in kinds)
    images = "".join(_image(figure, "Heat map by layer and KV head") for figure in pictures)
    return f'<h2>Who got what, and why</h2><dl>{legend}</dl><div class="maps">{images}</div>'


def _letter(place: int) -> str:
    """A, B, ..., Z, A1, B1, ..."""
    turn, rest = divmod(place, len(ascii_uppercase))
    return ascii_uppercase[rest] + (str(turn) if turn else "")


def _map(cells: list[list[float]], marks: list[list[str]], title: str) -> Figure:
    heads = max(map(len, cells))
    figure = Figure(figsize=(1.6 + 0.7 * max(4, heads), 1.4 + 0.3 * min(max(len(cells), 4), 32)), layout="constrained")
    axes: Axes = figure.subplots()
    image = axes.imshow(squared(cells), cmap=KEPT, vmin=0, aspect="auto")
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_xlabel("KV head")
    axes.set_ylabel("layer")
    axes.set_xticks(range(heads))
    for layer, row in enumerate(cells):
        for head, share in enumerate(row):
            red, green, blue, _ = image.to_rgba(np.array([share]))[0]
            colour = "w" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else "k"
            axes.text(head, layer, marks[layer][head], ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, ax=axes, pad=0.03)
    return figure


def _image(figure: Figure, alt: str) -> str:
    data = base64.b64encode(as_png(figure)).decode()
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def _facts(result: dict[str, Any]) -> str:
    check = result["check"]
    verdict = "not run" if check is None else "passed" if check["passed"] else f"failed: {'; '.join(check['failures'])}"
    listed = {
        "headwise check": verdict,
        "documents": f"{result['documents']} with {result['answers']} answers, hash {result['data']}",
        "seed": str(result["seed"]),
        "made again by": result["command"],
        "plan": result["chosen"]["plan"],
        "versions": ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
    }
    terms = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in listed.items())
    return f"<h2>What produced this</h2><dl>{terms}</dl>"
