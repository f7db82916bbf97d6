"""docs/reference/conversions.md, made of the conversions' cards."""

from __future__ import annotations

import inspect

from headwise.conversions import CONVERSIONS


def conversions_page(made: str) -> str:
    """A card of each conversion."""
    lines = [
        "# Conversions",
        "",
        made,
        "What `headwise convert MODEL --to` can make of a model. [What they cost](../convert.md).",
    ]
    for name, cls in CONVERSIONS.all().items():
        card, knobs = cls.card, inspect.signature(cls).parameters.values()
        lines += ["", f"## {name}", ""]
        lines += [f"{card.title}. `{name}({', '.join(f'{one.name}={one.default!r}' for one in knobs)})`", ""]
        lines += [f"- {' '.join((cls.__doc__ or '').split())}", f"- paper: {card.paper}", f"- exact: {card.exact}"]
        lines += [f"- comes out as: {card.loads}", f"- differs: {card.deviations}"]
        if card.leaves_out:
            lines.append(f"- leaves out: {card.leaves_out}")
        if card.systems:
            lines.append(f"- systems: {', '.join(map(str, card.systems))}")
    return "\n".join(lines) + "\n"
