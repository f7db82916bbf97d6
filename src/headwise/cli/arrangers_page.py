"""docs/reference/arrangers.md, made of the arrangers' cards."""

from __future__ import annotations

import inspect

from headwise.arrangers import ARRANGERS


def arrangers_page(made: str) -> str:
    """A card of each arranger."""
    lines = [
        "# Arrangers",
        "",
        made,
        "What `headwise.context.arrange` and `headwise context` can do with documents before a question is asked of",
        "them; several go one after the other, with `|` between. [When to use which](../context.md).",
    ]
    for name, cls in ARRANGERS.all().items():
        card = cls.card
        knobs = [one for one in inspect.signature(cls).parameters.values()]
        lines += [
            "",
            f"## {name}",
            "",
            f"{card.title}. `{name}({', '.join(f'{k.name}={k.default!r}' for k in knobs)})`",
        ]
        lines += ["", f"- knobs: {' '.join((cls.__doc__ or '').split())}"] if knobs else [""]
        lines += [f"- paper: {card.paper}", f"- forwards: {card.passes}", f"- differs: {card.deviations}"]
        if card.leaves_out:
            lines.append(f"- leaves out: {card.leaves_out}")
        if card.systems:
            lines.append(f"- systems: {', '.join(map(str, card.systems))}")
    return "\n".join(lines) + "\n"
