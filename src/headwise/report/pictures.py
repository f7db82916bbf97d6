"""Pictures of a run from its JSON object; `python -m headwise.report.pictures run.json out.png` draws the overview."""

from __future__ import annotations

import hashlib
import io
import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from headwise.errors import HeadwiseError
from headwise.files import write_bytes
from headwise.recipe import Recipe
from headwise.shapes import format_bytes

KEPT, LOST = "cividis", "magma_r"  # both read in grey and by colour-blind eyes
INK, PALE = "#1a1a2e", "#c9ced6"
ROLE_COLOURS = {"dense": "#5b6270", "plan": "#0b6fb8", "baseline": "#d9822b", "control": "#9aa1ad"}
SOURCE = "Source SHA-256"  # the text of a PNG file that names the data it was drawn from
MOST_LABELLED = 64  # cells of a heat map that still carry their number


def heat(axes: Axes, cells: list[list[float]], title: str, colours: str) -> None:
    """Layers down, KV heads across; the scale reaches from 0 to the largest share, in tens of per cent."""
    layers, heads = len(cells), max(map(len, cells))
    most = min(1.0, math.ceil(10 * max(map(max, cells)) + 1e-9) / 10) or 0.1
    image = axes.imshow(squared(cells), cmap=colours, vmin=0, vmax=most, aspect="auto")
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_xlabel("KV head")
    axes.set_ylabel("layer")
    axes.set_xticks(range(0, heads, max(1, heads // 8)))
    axes.set_yticks(range(0, layers, max(1, layers // 8)))
    if layers * heads <= MOST_LABELLED:
        for layer, row in enumerate(cells):
            for head, share in enumerate(row):
                red, green, blue, _ = image.to_rgba(np.array([share]))[0]
                dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
                axes.text(head, layer, f"{share:.0%}", ha="center", va="center", fontsize=8, color="w" if dark else "k")
    figure = axes.figure
    assert figure is not None
    bar = figure.colorbar(image, ax=axes, pad=0.03, aspect=12 + layers)
    bar.ax.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")


def squared(cells: list[list[float]]) -> list[list[float]]:
    """Rows all as long as the longest: heads that a layer does not have are no numbers, and left white."""
    heads = max(map(len, cells))
    return [[*row, *[math.nan] * (heads - len(row))] for row in cells]


def shade(share: float, colours: str) -> str:
    """CSS of a table's cell that shows a share from 0 to 1, its text readable on it."""
    red, green, blue = (round(255 * part) for part in colormaps[colours](min(1.0, max(0.0, share)))[:3])
    dark = 0.3 * red + 0.59 * green + 0.11 * blue < 128
    return f"background:#{red:02x}{green:02x}{blue:02x};color:{'#fff' if dark else '#000'}"


def kept_shares(row: dict[str, Any], tokens: int) -> list[list[float]]:
    """Tokens kept over tokens seen, [layers][KV heads]."""
    return [[count / tokens for count in heads] for heads in row["kept"]]


def head_maps(row: dict[str, Any], tokens: int) -> list[tuple[str, Figure]]:
    """(what it shows, figure) of what a recipe kept per head, and of the attention mass it lost there."""
    maps = [
        ("tokens kept, share of those seen", kept_shares(row, tokens), KEPT),
        ("attention mass lost", row["lost_mass"], LOST),
    ]
    figures = []
    for title, cells, colours in maps:
        figure = Figure(figsize=(4.6, 1.4 + 0.28 * min(max(len(cells), 4), 32)), layout="constrained")
        heat(figure.subplots(), cells, title, colours)
        figures.append((title, figure))
    return figures


def overview(result: dict[str, Any]) -> Figure:
    """The picture of a run: what each row holds and answers, and what the plan kept of every head."""
    rows = [row for row in result["rows"] if row["role"] != "control"]
    plans = [row for row in rows if row["role"] == "plan"]
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    bars, answers, heads = figure.subplots(1, 3, width_ratios=(1.1, 1, 1.2))
    names = [literal(row["recipe"]) for row in rows]
    colours = [ROLE_COLOURS[row["role"]] for row in rows]
    held = [row["cache_bytes"] / 2**20 for row in rows]
    told = [format_bytes(row["cache_bytes"]) for row in rows]
    _bars(bars, names, held, colours, told, "cache after the prompt, MiB")
    if all(row["answers_total"] for row in rows):
        right = [100 * row["answers_right"] / row["answers_total"] for row in rows]
        told = [f"{row['answers_right']} of {row['answers_total']}" for row in rows]
        _bars(answers, names, right, colours, told, "facts of the text answered, %", most=100)
    else:
        _bars(answers, names, [row["prefill_s"] for row in rows], colours, [""] * len(rows), "prefill, seconds")
    answers.set_yticklabels([])
    shown = min(plans or rows, key=lambda row: row["kept_share"])
    heat(heads, kept_shares(shown, result["prompt_tokens"]), f"tokens kept per head: {literal(shown['recipe'])}", KEPT)
    heads.set_xlabel(f"KV head; held as: {_forms(shown, result['dtype'])}")
    name = Path(result["model"]).name or result["model"]
    figure.suptitle(f"{literal(name)}: {result['prompt_tokens']} tokens of context", fontsize=11, color=INK)
    return figure


def _forms(row: dict[str, Any], plain: str) -> str:
    """How many heads hold their tokens in what form, `plain` where no part of the recipe compresses them."""
    heads: Counter[str] = Counter()
    for recipe, count in row["recipes"].items():
        compress = Recipe.parse("" if recipe == "dense" else recipe).compress
        heads[plain if compress is None else compress.name] += count
    return ", ".join(f"{count} {form}" for form, count in heads.most_common())


def _bars(
    axes: Axes, names: list[str], sizes: list[float], colours: list[str], told: list[str], title: str, most: float = 0.0
) -> None:
    places = range(len(names))
    axes.barh(places, sizes, color=colours)
    axes.set_yticks(places, names, fontsize=9)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_xlim(0, 1.35 * (most or max(sizes)))
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= (most or max(sizes))])
    for place, size, text in zip(places, sizes, told, strict=True):
        axes.text(size, place, f" {text}", va="center", fontsize=9, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(color=PALE)


def literal(text: str) -> str:
    """A name as a picture writes it: dollars in it begin no formula."""
    return text.replace("$", r"\$")


def as_png(figure: Figure, dpi: int = 150, source: bytes | None = None) -> bytes:
    """The figure as the bytes of a PNG file, which carries the SHA-256 of the data it was drawn from, where given."""
    out = io.BytesIO()
    FigureCanvasAgg(figure)
    told = {} if source is None else {SOURCE: hashlib.sha256(source).hexdigest()}
    figure.savefig(out, format="png", dpi=dpi, metadata=told)
    return out.getvalue()


def main(arguments: list[str]) -> None:
    """Draw the overview of a run from the JSON that `headwise run --json` printed."""
    if len(arguments) != 2:
        raise SystemExit("use: python -m headwise.report.pictures run.json picture.png")
    source, target = map(Path, arguments)
    try:
        data = source.read_bytes()
        picture = as_png(overview(json.loads(data)), source=data)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HeadwiseError(f"{source} is not the output of `headwise run --json` ({error!r}); run it again") from None
    write_bytes(target, picture)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except HeadwiseError as error:
        raise SystemExit(f"error: {error}") from None
