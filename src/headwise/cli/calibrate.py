"""`headwise calibrate`: measure which heads recall, and write the plan that spends a budget on them."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from headwise.calibrate.heads import Recall

FACTS = 8  # planted in a document, one question each
FIRST = 120_000  # characters of the novel left out at the front: `headwise run` asks about those


def calibrate(
    out: Annotated[Path, typer.Option(help="The plan file to write.")],
    model: Annotated[
        str | None, typer.Argument(help="A model's path or hub id; the embedded model by default.")
    ] = None,
    budget: Annotated[float, typer.Option(help="Share of dense bytes the plan may take.")] = 0.25,
    documents: Annotated[int, typer.Option(help="Documents to recall from.")] = 2,
    context: Annotated[int, typer.Option(help="Tokens of a document.")] = 3000,
    seed: Annotated[int, typer.Option(help="Seed of the facts.")] = 0,
) -> None:
    """Measure by ablation which KV heads recall, and write a plan: those keep everything, the others a window.

    Documents are later chapters of the built-in novel with facts whose keys the evaluations never use.
    """
    from headwise.assets import embedded_model
    from headwise.calibrate.heads import head_losses, recall_plan
    from headwise.cli.progress import Watcher
    from headwise.engine.hf import attach
    from headwise.engine.load import load_model, load_tokenizer, quiet

    quiet()
    console = Console(stderr=True)
    place = model or str(embedded_model())
    loaded, tokenizer = load_model(place), load_tokenizer(place)
    recalls = [_recall(tokenizer, context, Random(f"calibrate/{seed}/{i}"), i) for i in range(documents)]
    with Watcher(console) as watch:
        losses = head_losses(loaded, recalls, lambda done, total: watch("restricting heads one by one", done, total))
    seam = attach(loaded)
    plan = recall_plan(seam.geometry, losses, budget, seam.fingerprint)
    plan.save(out)
    whole = [(layer, head) for layer, row in enumerate(plan.recipes) for head, r in enumerate(row) if r.evict is None]
    table = "\n".join(f"layer {i:2}  " + "  ".join(f"{x:6.3f}" for x in row) for i, row in enumerate(losses.tolist()))
    typer.echo(f"nats per answer token lost when one KV head keeps only sinks and recent tokens:\n{table}")
    typer.echo(f"kept whole (layer, head): {', '.join(map(str, whole))}\nwrote {out}")


def _recall(tokenizer: Any, context: int, rng: Random, number: int) -> Recall:
    """A stretch of the novel of about `context` tokens with facts in it, and their questions."""
    from headwise.assets import novel
    from headwise.bench.job import encode
    from headwise.calibrate.heads import Recall
    from headwise.models.embedded import tasks

    text = novel()
    start = text.index(". ", FIRST + (number * 4 * context) % (len(text) - FIRST - 6 * context)) + 2
    facts = tasks.draw_facts(rng, FACTS)
    depths = [(i + 0.5) / FACTS for i in range(FACTS)]
    ids = encode(tokenizer, tasks.plant(text[start : start + 3 * context], [f.sentence for f in facts], depths), True)
    return Recall(ids, tuple((encode(tokenizer, f.question), encode(tokenizer, f.answer)) for f in facts))
