"""`headwise train-drafter`: drafting heads for a model, trained while it is frozen, in one file that is bound to it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli.commands import command
from headwise.cli.options import Device, Docs, Fresh, Json, Model, Seed, State
from headwise.report.terminal import plain, stdout

if TYPE_CHECKING:
    from headwise.decoding.heads.base import Trained
    from headwise.decoding.heads.train import Lesson


@command("train-drafter")
def train_drafter(
    model: Model = None,
    kind: Annotated[str, typer.Option(help="Kind of the heads: medusa, clover or dream.")] = "medusa",
    out: Annotated[Path, typer.Option(help="The file of heads to write.")] = Path("heads.safetensors"),
    docs: Docs = None,
    depth: Annotated[int, typer.Option(help="Tokens that are guessed one after the other.")] = 3,
    steps: Annotated[int, typer.Option(help="Steps of training.")] = 400,
    window: Annotated[int, typer.Option(help="Tokens of a step.")] = 512,
    device: Device = "cpu",
    seed: Seed = 0,
    as_json: Json = False,
    state: State = None,
    fresh: Fresh = False,
) -> None:
    """Train heads that guess a model's next tokens, and measure how often they hit on text that they have not seen.

    A tenth of the text is left out for that. `headwise run --draft "medusa('FILE')"` drafts with them.
    """
    from headwise.bench.tuning import texts_of
    from headwise.cli.given import check_least, check_outputs, check_place, place_of
    from headwise.cli.state import check_state
    from headwise.decoding.heads.base import HEADS
    from headwise.decoding.heads.train import Lesson
    from headwise.seams.transformers.load import quiet

    quiet()
    HEADS.get(kind)
    check_least(depth=(depth, 1), steps=(steps, 1), window=(window, depth + 2))
    check_outputs(out=out)
    check_place("auto", device)
    check_state(state)
    paths = [] if docs is None else texts_of(docs)
    trained = _trained(
        place_of(model), Lesson(kind, depth, steps, window=window, seed=seed), paths, device, state, fresh
    )
    trained.save(out)
    if as_json:
        typer.echo(json.dumps(facts_of(trained, out)))
        return
    stdout().print(_table(trained))
    typer.echo(f"wrote {out}; draft with it by --draft \"{kind}('{out}')\"")


def _trained(place: str, lesson: Lesson, paths: list[Path], device: str, state: Path | None, fresh: bool) -> Trained:
    """The heads, trained on from where an earlier call was stopped."""
    from headwise.assets import novel
    from headwise.bench.job import encode
    from headwise.cli.progress import Watcher
    from headwise.cli.state import place_for
    from headwise.decoding.heads.train import train
    from headwise.seams.transformers.cache import attach
    from headwise.seams.transformers.load import load_pair

    tokenizer, loaded = load_pair(place, device=device)
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in paths] or [novel()]
    ids = [encode(tokenizer, text, start=True)[0] for text in texts]
    facts = [attach(loaded).fingerprint, asdict(lesson), [len(one) for one in ids], [one.sum().item() for one in ids]]
    unfinished = place_for("train-drafter", facts, state)
    if fresh:
        unfinished.unlink(missing_ok=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    with Watcher() as watch:
        watch.say(f"{'going on from' if unfinished.exists() else 'what is learnt is kept in'} {unfinished}")
        watch.resume = f"the same command goes on from here ({unfinished}); --fresh begins anew"
        return train(loaded, ids, lesson, unfinished, watch)


def facts_of(trained: Trained, out: Path) -> dict[str, Any]:
    """What was trained and measured, as JSON data."""
    return {
        "file": str(out),
        "kind": trained.heads.kind,
        "model": trained.model,
        "steps": trained.steps,
        "tokens": trained.tokens,
        "hits": [list(one) for one in trained.hits],
    }


def _table(trained: Trained) -> Any:
    """How often the best one, two, four and eight tokens of every guess hit."""
    from rich.table import Table

    table = Table("guess", "best token right", "among 2", "among 4", "among 8")
    for place, ranks in enumerate(trained.hits):
        shares = (f"{sum(ranks[:most]):.1%}" for most in (1, 2, 4, 8))
        table.add_row(plain(f"{place + 1} after the newest token"), *shares)
    return table
