"""The page of `headwise why`: the prompt once for each explanation, its tokens coloured by their figures."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from headwise.files import write_text

FOR, AGAINST = "0, 110, 200", "200, 60, 0"
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.9 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { font-size: 1rem; margin: 2rem 0 0.2rem; } p { margin: 0.2rem 0; } .told { opacity: 0.75; font-size: 0.9rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; } .text span { border-radius: 3px; padding: 2px 0; }
"""


def write_page(told: dict[str, Any], path: Path) -> None:
    """Write the page of what the command told, its JSON data; it needs nothing else."""
    write_text(path, page(told))


def page(told: dict[str, Any]) -> str:
    """The page as text. Whatever a prompt holds stands in it as text."""
    said = f"Why {told['says']!r}?"
    parts = [
        "<!doctype html>", f'<html lang="en"><head><meta charset="utf-8"><title>{escape(said)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">', f"<style>{STYLE}</style></head><body>",
        f"<h1>{escape(said)}</h1>",
        f"<p>{escape(told['model'])} says it next, with a probability of {told['probability']:.3f}. Blue tokens speak "
        "for it, orange ones against it; a pointer over a token shows its figure.</p>",
    ]  # fmt: skip
    for name, figures in told["figures"].items():
        card = told["explanations"][name]
        falls, left = 100 * told["falls"][name], 100 * told["left"][name]
        parts += [
            f"<h2>{escape(card['title'])}</h2>",
            f'<p class="told">{escape(card["tells"])}. Without the tokens it names the probability falls by '
            f"{falls:.0f} %; by these alone {left:.0f} % is left.</p>",
            f'<p class="text">{_coloured(told["text"], figures)}</p>',
        ]
    return "\n".join([*parts, "</body></html>", ""])


def _coloured(text: list[str], figures: list[float]) -> str:
    most = max(map(abs, figures)) or 1.0
    return "".join(
        f'<span title="{place}: {figure:.3g}" style="background: rgba({FOR if figure > 0 else AGAINST}, '
        f'{0.75 * abs(figure) / most:.2f})">{escape(piece)}</span>'
        for place, (piece, figure) in enumerate(zip(text, figures, strict=True))
    )
