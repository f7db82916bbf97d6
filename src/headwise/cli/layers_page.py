"""The page of layer parts, and their cards as lines."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from headwise.layer_parts import FEEDS, LAYER_PARTS, SLOTS
from headwise.layers.composition import pairs
from headwise.systems import systems
from headwise.training_hooks import HOOKS

SLOT_TELLS = {
    "project": "how a token's width becomes queries, keys and values",
    "position": "how a token's place enters",
    "pattern": "which of the keys before it a query reads; all of them where there is none",
    "score": "how much a query asks of a key",
    "normalise": "how scores become weights",
    "mix": "a running state in the place of score and normalisation",
    "out": "how what heads read becomes the token's width again",
}


def signature(cls: Any) -> str:
    """`kda(rank=0, block=64)`; a knob that has to be given stands alone."""
    own = (one for one in fields(cls) if one.init)
    told = (one.name if one.default is MISSING else f"{one.name}={one.default!r}" for one in own)
    return f"{cls.name}({', '.join(told)})"


def card_lines(cls: Any) -> list[tuple[str, str]]:
    """The card of a part as (what, text)."""
    card = cls.card
    return [
        ("knobs", signature(cls)),
        ("slot", f"{cls.part}: {SLOT_TELLS[cls.part]}"),
        ("paper", card.paper),
        ("changes", card.changes),
        ("equation", card.equation),
        *([("comes with", cls.usual)] if getattr(cls, "usual", "") else []),
        ("state", {"none": "none of its own", "constant": "constant bytes"}[card.state]),
        ("limit cases", "; ".join(one.says for one in card.equals) or "none"),
        ("stands for systems", _systems(card)),
        ("differs from the paper", card.deviations),
    ]


def layers_page(made: str) -> str:
    """The table of parts by slot, and a card of each."""
    lines = [
        "# Parts of attention layers",
        "",
        made,
        "At most one part of each slot makes a layer: `project | position | pattern | score | normalise | mix | out`.",
        "[Layers](../layers.md) says what a missing one means.",
    ]
    for slot in SLOTS:
        lines += ["", f"## {slot}", "", f"{SLOT_TELLS[slot][0].upper()}{SLOT_TELLS[slot][1:]}.", ""]
        lines += ["| part | what it changes | state | paper |", "| --- | --- | --- | --- |"]
        for name, cls in LAYER_PARTS[slot].all().items():
            card = cls.card  # type: ignore[attr-defined]
            lines.append(f"| [{name}](#{name}) | {card.changes} | {card.state} | {card.paper} |")
    for slot in SLOTS:
        for name, cls in LAYER_PARTS[slot].all().items():
            lines += ["", f"### {name}", "", f"{cls.card.title}. `{signature(cls)}`", ""]  # type: ignore[attr-defined]
            lines += [f"- {label}: {_code(label, text)}" for label, text in card_lines(cls) if label != "knobs"]
    return "\n".join([*lines, *_beside(), *_composition()]) + "\n"


def _beside() -> list[str]:
    """What follows attention in a host, and what may be done beside the task while one is trained."""
    lines = ["", "## feed", "", "What follows attention in a layer of a host: `HostConfig(feed=...)`.", ""]
    for name, cls in FEEDS.all().items():
        lines += [f"### {name}", "", f"{cls.card.title}. `{signature(cls)}`", ""]  # type: ignore[attr-defined]
        lines += [f"- {label}: {_code(label, text)}" for label, text in feed_lines(cls)] + [""]
    lines += ["## hooks", "", "What is done beside the task: `headwise train host --hooks ...`.", ""]
    for name, cls in HOOKS.all().items():
        lines += [f"### {name}", "", f"{cls.card.title}. `{signature(cls)}`", ""]  # type: ignore[attr-defined]
        lines += [f"- {label}: {_code(label, text)}" for label, text in hook_lines(cls)] + [""]
    return lines[:-1]


def feed_lines(cls: Any) -> list[tuple[str, str]]:
    """The card of a feed part as (what, text)."""
    card = cls.card
    told = [("paper", card.paper), ("changes", card.changes), ("equation", card.equation)]
    return [*told, ("stands for systems", _systems(card)), ("differs from the paper", card.deviations)]


def hook_lines(cls: Any) -> list[tuple[str, str]]:
    """The card of a training hook as (what, text)."""
    card = cls.card
    told = [("paper", card.paper), ("does", card.does), ("equation", card.equation), ("does nothing at", card.ablation)]
    return [*told, ("stands for systems", _systems(card)), ("differs from the paper", card.deviations)]


def _systems(card: Any) -> str:
    return ", ".join(f"{one} ({systems()[one].name})" for one in card.systems) or "none"


def _composition() -> list[str]:
    """Which parts go together: every two of different slots, made into a small layer and asked."""
    found = list(pairs())
    refused = [(one, two, why) for one, two, why in found if why]
    others: dict[tuple[str, str], list[str]] = {}
    for one, two, why in refused:
        named, other = (one, two) if why.startswith(f"'{one}'") else (two, one)
        told = why.replace(f"'{named}'", "it").replace(f"'{other}'", "the other").partition(";")[0]
        others.setdefault((told, named), []).append(other)
    reasons: dict[tuple[str, str], list[str]] = {}
    for (told, named), refusing in others.items():
        reasons.setdefault((told, ", ".join(refusing)), []).append(named)
    lines = ["", "## What goes together", ""]
    lines.append(
        f"Of {len(found)} pairs of parts of different slots, {len(found) - len(refused)} make a layer that reads a"
    )
    lines += [
        f"text; {len(refused)} are refused, with the reason:",
        "",
        "| part | with | reason |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {', '.join(names)} | {refusing} | {told} |" for (told, refusing), names in reasons.items()]
    return lines


def _code(label: str, text: str) -> str:
    return f"`{text}`" if label in ("equation", "comes with") else text
