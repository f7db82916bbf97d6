"""`headwise lens` of encoders, encoder-decoders and image encoders: what each reads, and what is told of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from headwise.lens import HostScene, Reading

Given = Mapping[str, Path | None]  # files by option
READ_BY = {
    "encoder": ("--prompt-file",),
    "encoder-decoder": ("--source-file", "--target-file"),
    "image encoder": ("--image",),
}
NAMED = {"--prompt-file": "text", "--source-file": "source", "--target-file": "target", "--image": "image"}
TABLED = 6  # heads of each lens in the table


@dataclass(frozen=True)
class HostAsked:
    """What is asked of a host: where it lies and what the user calls it, its kind, files by option, lenses, heads."""

    place: str
    model: str
    kind: str
    given: Given
    measure: list[str] | None
    heads: str
    seed: int
    dtype: str
    device: str


def host_asked(place: tuple[str, str], given: Given) -> str | None:
    """Which kind of host lies at a place, None for a decoder; refused, before weights are loaded, where other files are
    given than it reads."""
    from headwise.errors import HeadwiseError
    from headwise.seams.transformers.model_host import kind_at

    kind = kind_at(place[0])
    wanted = ("--prompt-file",) if kind is None else READ_BY[kind]
    told = f"'{place[1]}' is {'a decoder' if kind is None else f'an {kind}'}"
    for option, file in given.items():
        if file is not None and option not in wanted:
            raise HeadwiseError(f"{option} {file}: {told}, which reads {' and '.join(wanted)}; give that")
    if missing := [option for option in wanted if kind is not None and given[option] is None]:
        raise HeadwiseError(f"{told}, which reads {' and '.join(wanted)}; give {' and '.join(missing)} as well")
    return kind


def refuse_others(kind: str, options: Mapping[str, object]) -> None:
    """Refuse what is done beside decoders only."""
    from headwise.errors import HeadwiseError

    if wrong := [option for option, value in options.items() if value]:
        raise HeadwiseError(f"{wrong[0]} is for decoders, and this is an {kind}; leave it out, or give a decoder")


def tell_of_host(asked: HostAsked, out: Path, as_json: bool) -> None:
    """Look, write the page, and print what was found, as JSON or as tables."""
    from headwise.cli.progress import Watcher

    with Watcher() as watch:
        result = look_into_host(asked, out, watch)
    if as_json:
        typer.echo(json.dumps(result, indent=1))
    else:
        print_host(result, out)


def look_into_host(asked: HostAsked, out: Path, watch: Any) -> dict[str, Any]:
    """Look, write the page, and give what was measured as JSON data."""
    from headwise.cli.commands.lens import lens_names
    from headwise.lens.host_patterns import host_patterns
    from headwise.lens.hosts import measured_host
    from headwise.lenses import LENSES, AttentionLens
    from headwise.report.host_page import write_host_page

    if asked.measure is None:
        names = [name for name, one in LENSES.all().items() if isinstance(one, AttentionLens)]
    else:
        names = lens_names(asked.measure)
    watch("loading the model")
    scene, words = _opened(asked)
    near = parse_host_heads(asked.heads, scene)
    found = measured_host(scene, names, watch)
    watch("drawing patterns")
    drawn = host_patterns(scene, near)
    stacks = [
        {
            "name": one.name,
            "queries": one.queries,
            "keys": one.keys,
            "heads": list(one.heads),
            "refused": found[one.name].refused,
            "figures": {
                name: [[None if x != x else x for x in row] for row in rows.tolist()]
                for name, rows in found[one.name].figures.items()
            },
        }
        for one in scene.host.stacks
    ]
    result = {
        "model": asked.model,
        "kind": asked.kind,
        "fingerprint": scene.host.fingerprint,
        "tokens": {name: one.tokens for name, one in scene.readings.items()},
        "lenses": {name: asdict(LENSES.get(name).card) for name in names},
        "stacks": stacks,
    }
    write_host_page(result, drawn, words, out)
    return result


def parse_host_heads(text: str, scene: HostScene) -> list[tuple[str, int, int]]:
    """`"cross.1.3,encoder.0.2"` -> stack, layer and head of each; of a host of one stack its name may be left out."""
    from headwise.errors import HeadwiseError

    stacks, found = {one.name: one for one in scene.host.stacks}, []
    for word in filter(None, text.split(",")):
        parts = word.strip().split(".")
        if len(parts) == 2 and len(stacks) == 1:
            parts = [*stacks, *parts]
        if len(parts) != 3 or parts[0] not in stacks or not all(x.isascii() and x.isdigit() for x in parts[1:]):
            raise HeadwiseError(
                f"--heads {word}: a head of this model is STACK.LAYER.HEAD, of {', '.join(stacks)}, counted from 0; "
                f"write it like {next(iter(stacks))}.0.1"
            )
        name, layer, head = parts[0], int(parts[1]), int(parts[2])
        heads = stacks[name].heads
        if layer >= len(heads) or head >= heads[layer]:
            raise HeadwiseError(
                f"--heads {word}: the {name} has layers 0 to {len(heads) - 1} of {max(heads)} heads; name one of these"
            )
        found.append((name, layer, head))
    return found


def _opened(asked: HostAsked) -> tuple[HostScene, dict[str, Any]]:
    """The host over what was given, and what the page shows of it by name: words of tokens, or a picture."""
    from headwise.lens import HostScene, read_picture
    from headwise.seams.transformers.load import load_tokenizer, quiet
    from headwise.seams.transformers.model_host import load_host, read_image

    quiet()
    if asked.kind == "image encoder":
        from headwise.report.pictures_shown import as_shown, opened_picture

        file = asked.given["--image"]
        assert file is not None, "it was asked for"
        pixels, seen = read_image(asked.place, opened_picture(file))
        host = load_host(asked.place, asked.dtype, asked.device)
        reading, grid = read_picture(host, pixels), host.grid(pixels)
        shown = {"picture": as_shown(seen), "grid": list(grid), "before": reading.tokens - grid[0] * grid[1]}
        return HostScene(host, {"image": reading}, asked.seed), {"image": shown}
    texts = {NAMED[option]: _read(file) for option, file in asked.given.items() if file is not None}
    tokenizer = load_tokenizer(asked.place)
    host = load_host(asked.place, asked.dtype, asked.device)
    readings = {
        name: _encoded(tokenizer, text, host.start if name == "target" else None) for name, text in texts.items()
    }
    words = {name: {"words": _words(tokenizer, one)} for name, one in readings.items()}
    return HostScene(host, readings, asked.seed), words


def _read(file: Path) -> str:
    from headwise.errors import FileError
    from headwise.files import read_text

    text = read_text(file)
    if not text.strip():
        raise FileError(f"{file} holds no text; give a file with some")
    return text


def _encoded(tokenizer: Any, told: str, start: int | None) -> Reading:
    """A text with the special tokens that its model reads it with; of a target, moved on by one behind the `start`."""
    import torch

    from headwise.lens import text

    ids = list(tokenizer(told).input_ids)
    if start is not None:
        ids = [start, *ids[:-1]] if ids[-1] == tokenizer.eos_token_id else [start, *ids]
    special = set(tokenizer.all_special_ids)
    delimits = [one in special or not any(c.isalnum() for c in tokenizer.decode([one])) for one in ids]
    return text(torch.tensor([ids]), torch.tensor(delimits))


def _words(tokenizer: Any, reading: Reading) -> list[str]:
    """Each token as text, with a space before those that begin a word."""
    decode: Callable[[list[int]], str] = tokenizer.decode
    ids = reading.shown[0].tolist()
    found = [decode(ids[:1])]
    for before, one in pairwise(ids):
        first, both = decode([before]), decode([before, one])
        found.append(both[len(first) :] if both.startswith(first) else f" {decode([one])}")
    return found


def print_host(result: dict[str, Any], out: Path) -> None:
    """The heads of the highest figures of each lens, a table for each stack."""
    import torch
    from rich.table import Table

    from headwise.report.terminal import plain, stdout, visible

    for stack in result["stacks"]:
        table = Table("lens", "heads of the highest figures", "a head of a high figure", title=plain(
            f"{result['model']}: {stack['name']}, {stack['queries']} looks at {stack['keys']}"
        ))  # fmt: skip
        for name, rows in stack["figures"].items():
            figures = torch.tensor([[-float("inf") if x is None else x for x in row] for row in rows])
            order = figures.flatten().argsort(descending=True, stable=True)[:TABLED].tolist()
            wide = figures.shape[1]
            best = "  ".join(f"{i // wide}.{i % wide} {figures.flatten()[i]:.3g}" for i in order)
            table.add_row(name, best, result["lenses"][name]["tells"])
        stdout().print(table)
        for name, why in stack["refused"].items():
            typer.echo(visible(f"{name} was not taken: {why}"))
    typer.echo(visible(f"wrote {out}"))
