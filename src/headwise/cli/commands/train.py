"""`headwise train`: a host of attention layers on a toy task; the embedded model from its token files to its card."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from headwise.cli.commands import COMMANDS
from headwise.cli.renamed import Command
from headwise.models.embedded.recipe import Recipe, default_recipe, tiny_recipe

app = typer.Typer(
    help="Train a small model made of attention layers on a toy task, or the embedded model by the project's recipe.",
    no_args_is_help=True,
)
COMMANDS.add("train", app)

Data = Annotated[Path, typer.Option(help="Folder made by `headwise train prepare`.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change a recipe field or a run option: `lr=0.002`, `stage_tokens=300e6,280e6,220e6,200e6`, "
        "`device=cpu`, `compile=no`, `recipe=tiny`. May be given often.",
    ),
]


def _convert(old: Any, text: str) -> Any:
    """`text` as the type of `old`."""
    return type(old)(float(text)) if isinstance(old, int | float) else text


def _settings(changes: list[str] | None) -> tuple[Recipe, dict[str, Any]]:
    """(the recipe, run options) after the `--set` changes."""
    from headwise.models.embedded.train import Options

    pairs = dict(change.split("=", 1) for change in changes or [])
    recipe = tiny_recipe() if pairs.pop("recipe", "default") == "tiny" else default_recipe()
    if tokens := pairs.pop("stage_tokens", None):
        counts = [round(float(t)) for t in tokens.split(",")]
        if len(counts) != len(recipe.stages):
            raise typer.BadParameter(f"stage_tokens has {len(counts)} numbers, the recipe {len(recipe.stages)} stages")
        stages = zip(recipe.stages, counts, strict=True)
        recipe = replace(recipe, stages=tuple(replace(stage, tokens=n) for stage, n in stages if n))
    options: dict[str, Any] = {}
    for name, text in pairs.items():
        if name in {f.name for f in fields(Options)}:
            options[name] = _convert(getattr(Options(), name), text)
        elif name in {f.name for f in fields(Recipe)} - {"architecture", "stages", "betas"}:
            recipe = replace(recipe, **{name: _convert(getattr(recipe, name), text)})
        else:
            raise typer.BadParameter(f"unknown setting {name!r} in --set")
    return recipe, options


@app.command()
def prepare(
    corpus: Annotated[Path, typer.Option(help="Corpus folder with splits.json.")],
    out: Annotated[Path, typer.Option(help="Folder for the tokenizer and the token files.")],
    vocab: Annotated[int, typer.Option(help="Entries of the tokenizer.")] = 4096,
) -> None:
    """Train the tokenizer and write the token files."""
    from headwise.models.embedded.prepare import prepare as run

    meta: Any = run(corpus, out, vocab)
    for split in ("train", "valid"):
        part = meta[split]
        typer.echo(f"{split}: {part['tokens']:,} tokens, {part['characters_per_token']} characters a token")


@app.command()
def embedded(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for checkpoint and log; an unfinished run there goes on.")],
    minutes: Annotated[float, typer.Option(help="Stop cleanly after this wall time; 0: run to the end.")] = 0.0,
    tokens_scale: Annotated[float, typer.Option(help="Factor on every stage's tokens.")] = 1.0,
    optimizer: Annotated[str, typer.Option(help="adamw or muon.")] = "",
    workers: Annotated[int, typer.Option(help="Data processes; -1: by the machine.")] = -1,
    change: Set = None,
) -> None:
    """Train the embedded model, or go on where the last call stopped."""
    from headwise.models.embedded.train import Options, train

    recipe, options = _settings(change)
    if optimizer:
        recipe = replace(recipe, optimizer=optimizer)
    train(recipe.scaled(tokens_scale), data, out, Options(minutes=minutes, workers=workers, **options))


@app.command()
def throughput(
    data: Data,
    seconds: Annotated[float, typer.Option(help="Time for each stage, compilation apart.")] = 8.0,
    change: Set = None,
) -> None:
    """Measure training tokens per second for each stage on this device."""
    from headwise.models.embedded.throughput import throughput as run
    from headwise.models.embedded.train import Options

    recipe, options = _settings(change)
    for row in run(recipe, data, Options(**options), seconds):
        typer.echo(json.dumps(row))


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Option(help="checkpoint.pt of a run.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder that transformers will load.")],
) -> None:
    """Write a plain Hugging Face folder from a checkpoint."""
    from headwise.models.embedded.export import export as run

    typer.echo(f"wrote {run(checkpoint, data, out)}")


@app.command(cls=Command)
def measure(
    model: Annotated[Path, typer.Argument(help="Exported folder.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for figures.json and card.md.")],
    trials: Annotated[int, typer.Option(help="Documents per length.")] = 10,
    longest: Annotated[int, typer.Option(help="Longest context in tokens.")] = 16_384,
    seed: Annotated[int, typer.Option(help="Seed of documents and keys.")] = 7,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Measure perplexity, needle, recall, copying and tracing; write the model card."""
    from headwise.models.embedded.measure import LENGTHS, Scope, card
    from headwise.models.embedded.measure import measure as run

    lengths = tuple(n for n in LENGTHS if n <= longest)
    typer.echo(card(run(model, data, out, Scope(trials, lengths, seed), device)))


@app.command()
def host(
    layers: Annotated[
        str, typer.Option(help="Sentences of the layers, as a pattern that is repeated; see `headwise layers`.")
    ] = "3*kda, mla(rank=32)",
    task: Annotated[
        str, typer.Option(help="mqar, copy, induction, flip_flop, selective_copy, two_hop or same_different.")
    ] = "mqar(128, length=64, pairs=4)",
    depth: Annotated[int, typer.Option(help="Layers, a multiple of the pattern's.")] = 4,
    width: Annotated[int, typer.Option(help="Channels of a token.")] = 64,
    heads: Annotated[int, typer.Option(help="Heads of a layer.")] = 2,
    steps: Annotated[int, typer.Option(help="Updates.")] = 400,
    batch: Annotated[int, typer.Option(help="Sequences of an update.")] = 32,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 3e-3,
    feed: Annotated[str, typer.Option(help="What follows attention, such as experts(4, top=2).")] = "gated_feed",
    hooks: Annotated[
        str, typer.Option(help='What is done beside the task, such as "balance(0.01) | sigma_reparam".')
    ] = "",
    out: Annotated[Path, typer.Option(help="Folder for the model; an unfinished training there goes on.")] = Path(
        "host"
    ),
    seed: Annotated[int, typer.Option(help="Seed of weights and sequences.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train a small model made of attention layers on a toy task, and tell what it gets right.

    The folder is one that transformers loads once `headwise.models.host` is imported.
    """
    from headwise.cli.progress import Watcher
    from headwise.seams.transformers.load import quiet

    quiet()
    from headwise.models.host import HostConfig
    from headwise.models.host_training import CHECKPOINT, Schedule, begin, train_host
    from headwise.tasks.sequences import parse_sequence_task

    made = parse_sequence_task(task)
    schedule = Schedule(steps=steps, batch=batch, lr=lr, seed=seed)
    config = HostConfig(
        layers, vocab_size=made.vocabulary, hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
        intermediate_size=2 * width, feed=feed,
    )  # fmt: skip
    if fresh:
        (out / CHECKPOINT).unlink(missing_ok=True)
    with Watcher() as watch:
        watch.resume = "the same command goes on"
        found = train_host(begin(config, schedule, task, hooks), schedule, made.sequence, out, watch)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    typer.echo(
        f"{found['accuracy']:.1%} of {found['asked']} answers right, loss {found['loss']:.3f}; "
        f"{found['parameters']:,} parameters, {found['state_bytes']:,} bytes of state after {found['tokens']} tokens, "
        f"{100 * found['read']:.0f} % of all pairs read\n"
        f"wrote {out}"
    )


if __name__ == "__main__":
    app()
