"""`headwise convert`: another model made of one that is there."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from headwise.cli.commands import command
from headwise.cli.options import Fresh, Json, State


@command("convert")
def convert(
    model: Annotated[str, typer.Argument(help="A model's path, hub id, or name in `headwise models`.")],
    to: Annotated[str, typer.Option(help="gqa, mla or eco_mla, with settings, like 'mla(rank=128, rope=64)'.")],
    out: Annotated[Path, typer.Option(help="Folder for what comes out; a stopped distillation there goes on.")],
    steps: Annotated[int, typer.Option(help="Updates of a distillation from the source; 0 trains nothing.")] = 0,
    batch: Annotated[int, typer.Option(help="Windows of an update.")] = 4,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 5e-4,
    windows: Annotated[int, typer.Option(help="Windows whose perplexity is asked before and after.")] = 32,
    tokens: Annotated[int, typer.Option(help="Tokens of a window, there and in the distillation.")] = 128,
    needles: Annotated[int, typer.Option(help="Planted facts asked about before and after; 0 is none.")] = 10,
    context: Annotated[int, typer.Option(help="Tokens of the texts that these are planted in.")] = 512,
    text: Annotated[str, typer.Option(help="A text file to read in the place of the built-in novel.")] = "",
    as_json: Json = False,
    state: State = None,
    fresh: Fresh = False,
) -> None:
    """Make a model with fewer KV heads, or with latent attention, of a Llama-like one, and tell what that cost."""
    from headwise.cli.progress import Watcher
    from headwise.cli.state import check_state, unfinished
    from headwise.conversions import conversion
    from headwise.convert.distil import Distilling
    from headwise.convert.judged import Asked
    from headwise.convert.run import Wanted, check_folder
    from headwise.convert.run import convert as converted
    from headwise.kept import once
    from headwise.models.host_training import CHECKPOINT
    from headwise.seams.transformers.load import quiet

    quiet()
    check_state(state)
    distilling = Distilling(steps, batch, tokens, lr)
    wanted = Wanted(model, conversion(to), distilling, Asked(windows, tokens, needles, context), text)
    if fresh:
        (out / CHECKPOINT).unlink(missing_ok=True)
    else:
        check_folder(out, wanted.facts)
    with Watcher() as watch, unfinished("convert", wanted.facts, watch, state=state, fresh=fresh) as folder:
        report = converted(wanted, out, partial(once, folder), watch)
    typer.echo(json.dumps(report, indent=1) if as_json else "\n".join(lines(report, out)))


def lines(report: dict[str, Any], out: Path) -> list[str]:
    """The report for people."""
    (before, after), ratio = report["perplexity"], report["ratio"]
    small, large = report["bytes_a_token"][::-1]
    told = [
        f"perplexity            {before:.2f} -> {after:.2f}, "
        f"times {ratio['mean']:.4f} (95 %: {ratio['low']:.4f} to {ratio['high']:.4f})",
        f"cache bytes a token   {large:,} -> {small:,} ({small / large:.1%})",
    ]
    told += [f"needles at {depth:<10} {own:.0%} -> {now:.0%}" for depth, (own, now) in report["needles"].items()]
    passed = "experimental: it costs more than 5 % of perplexity, or 5 points of needles"
    told.append(passed if report["experimental"] else "passed: within 5 % of perplexity and 5 points of needles")
    return [*told, f"wrote {out}"]
