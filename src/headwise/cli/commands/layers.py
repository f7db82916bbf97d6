"""`headwise layers`: the parts that attention layers are made of, one of them, or what a whole sentence comes to."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli.commands import command
from headwise.report.terminal import stdout

if TYPE_CHECKING:
    from headwise.layers.sentence import LayerSentence

LENGTHS = (1024, 65536)  # tokens after which the bytes of a state are told


@command("layers")
def layers(
    sentence: Annotated[str, typer.Argument(help="A part, or the sentence of a layer.")] = "",
    width: Annotated[int, typer.Option(help="Channels of a token, for the bytes of a layer's state.")] = 1024,
    heads: Annotated[int, typer.Option(help="Heads of the layer.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the parts of trainable attention layers; show one; or say what a sentence means and what its state holds."""
    from headwise.layer_parts import FEEDS, all_layer_parts
    from headwise.layers.base import Dims
    from headwise.layers.sentence import LayerSentence
    from headwise.training_hooks import HOOKS

    known = all_layer_parts()
    if not sentence:
        if as_json:
            typer.echo(json.dumps([facts_of(cls) for cls in known.values()], indent=1))
        else:
            _list(known)
        return
    if sentence in known | FEEDS.all() | HOOKS.all() and not as_json:
        typer.echo("\n".join(_card(sentence)))
        return
    told = facts_of_sentence(LayerSentence.parse(sentence), Dims(width, heads, width // heads))
    typer.echo(json.dumps(told, indent=1) if as_json else "\n".join(f"{name:12} {text}" for name, text in told.items()))


def _card(name: str) -> list[str]:
    """The card of a part, of what follows attention or of a training hook, as lines."""
    from headwise.cli.layers_page import card_lines, feed_lines, hook_lines, signature
    from headwise.layer_parts import FEEDS, all_layer_parts
    from headwise.training_hooks import HOOKS

    rooms = ((all_layer_parts(), card_lines), (FEEDS.all(), feed_lines), (HOOKS.all(), hook_lines))
    known, lines = next((one, lines) for one, lines in rooms if name in one)
    cls: Any = known[name]
    told = lines(cls) if lines is card_lines else [("knobs", signature(cls)), *lines(cls)]
    return [f"{name}: {cls.card.title}", *(f"{label:22} {text}" for label, text in told)]


def facts_of(cls: Any) -> dict[str, Any]:
    """A part as plain JSON data: name, slot, the card's fields, and its knobs with their defaults."""
    knobs = {one.name: None if one.default is MISSING else one.default for one in fields(cls) if one.init}
    card = {name: value for name, value in vars(cls.card).items() if name != "equals"}
    return {"name": cls.name, "slot": cls.part, **card, "equals": [one.says for one in cls.card.equals], "knobs": knobs}


def facts_of_sentence(sentence: LayerSentence, dims: Any) -> dict[str, Any]:
    """What every slot of a sentence holds, and the bytes of its state in bfloat16, by tokens."""
    from headwise.sentence import phrase

    parts = {slot: "" if part is None else phrase(part) for slot, part in sentence.full.items()}
    held = {f"{count} tokens": f"{sentence.state_bytes(dims, count, 2):,} bytes of state" for count in LENGTHS}
    return {"sentence": str(sentence), **parts, "sizes": json.dumps(asdict(dims)), **held}


def _list(known: dict[str, type]) -> None:
    from rich.table import Table

    from headwise.layer_parts import FEEDS
    from headwise.training_hooks import HOOKS

    table = Table("slot", "part", "what it changes", "state", "paper")
    for name, cls in known.items():
        card = cls.card  # type: ignore[attr-defined]
        table.add_row(cls.part, name, card.changes, card.state, card.paper)  # type: ignore[attr-defined]
    for kind, room in (("feed", FEEDS), ("hook", HOOKS)):
        for name, cls in room.all().items():
            card = cls.card  # type: ignore[attr-defined]
            table.add_row(kind, name, card.changes if kind == "feed" else card.does, "", card.paper)
    stdout().print(table)
    typer.echo('`headwise layers NAME` shows one; `headwise layers "gqa(2) | rope"` says what a layer comes to')
