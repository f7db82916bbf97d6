"""`headwise tune`: from a number of bytes to the plan that loses least on documents, with what it was chosen over."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from headwise.cli.progress import Watcher
    from headwise.engine.hf import PreTrainedModel
    from headwise.plan import Plan
    from headwise.recipe import Recipe
    from headwise.tune.outcome import Outcome

SHARE = 0.1  # of dense bytes where nothing else is asked for
LONGEST = 2048  # tokens of a tuning document where the context is longer: shares of it hold at every length


def tune(
    model: Annotated[
        str | None, typer.Argument(help="A model's path or hub id; the embedded model by default.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The plan file to write.")] = Path("tuned.plan"),
    memory: Annotated[str | None, typer.Option(help="Bytes the cache may hold after the prompt, like 512MiB.")] = None,
    share: Annotated[float | None, typer.Option(help="The same as a share of dense bytes; 0.1 by default.")] = None,
    context: Annotated[str, typer.Option(help="Tokens of the prompts the plan is for, like 8192 or 32k.")] = "8k",
    docs: Annotated[Path | None, typer.Option(help="A folder of your own .txt or .md files to tune on.")] = None,
    documents: Annotated[int, typer.Option(help="Documents of each kind.")] = 1,
    length: Annotated[
        int | None, typer.Option(help=f"Tokens of a document; the context, but at most {LONGEST}, by default.")
    ] = None,
    quality: Annotated[
        float | None, typer.Option(help="Take the fewest bytes that answer this share of what dense answers.")
    ] = None,
    candidate: Annotated[
        list[str] | None, typer.Option(help="A recipe heads may be given instead of the built-in ones; may repeat.")
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="Where finished measurements are kept, to go on after a kill.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write a page with pictures to this .html file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    no_check: Annotated[bool, typer.Option("--no-check", help="Leave the verdict of `headwise check` out.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of documents and methods.")] = 0,
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="Torch device, such as cpu or cuda.")] = "cpu",
) -> None:
    """Find the plan that loses least within a number of bytes, and write it with its proof.

    Documents are of the tuning split, whose text and keys no evaluation uses, or lie in --docs. The plan file holds
    every plan that was tried, and the verdict of `headwise check`.
    """
    from headwise.assets import embedded_model
    from headwise.bench.tuning import tuning_recalls
    from headwise.cli.given import check_report
    from headwise.cli.progress import Watcher
    from headwise.engine.hf import attach
    from headwise.engine.load import load_model, load_tokenizer, quiet
    from headwise.recipe import Recipe
    from headwise.report.tune_page import write_page

    quiet()
    check_report(report)
    tokens = _tokens(context)
    menu = [Recipe.parse(sentence) for sentence in candidate or ()]
    with Watcher(Console(stderr=True)) as watch:
        watch("loading")
        place = str(embedded_model()) if model is None else model
        loaded, tokenizer = load_model(place, dtype, device), load_tokenizer(place)
        budget = _budget(memory, share, attach(loaded).geometry.dense_bytes(tokens, loaded.dtype))
        recalls = tuning_recalls(tokenizer, length or min(tokens, LONGEST), documents, seed, docs)
        outcome = tuned(
            loaded, recalls, budget, tokens, menu=menu, quality=quality, folder=state, seed=seed, watch=watch
        )
        plan = outcome.plan if no_check else checked(loaded, tokenizer, outcome.plan, length or LONGEST, seed, watch)
    result = {"model": model or "embedded", **outcome.as_json(), "check": plan.quality.get("check"), **_source(recalls)}
    replace(plan, quality={**plan.quality, "source": _source(recalls)}).save(out)
    if report is not None:
        write_page(result, report)
    if as_json:
        typer.echo(json.dumps(result, indent=1))
        return
    for line in told(outcome):
        typer.echo(line)
    typer.echo(f"wrote {out}: {plan.doubt or 'passed `headwise check`'}")


def tuned(
    model: PreTrainedModel,
    recalls: list[Any],
    budget: int,
    tokens: int,
    *,
    menu: list[Recipe],
    quality: float | None,
    folder: Path | None,
    seed: int,
    watch: Watcher,
) -> Outcome:
    """Measure, choose and try; `folder` None keeps measurements with the user's other caches."""
    from headwise.calibrate.answers import dense_answers
    from headwise.tune.menu import default_menu
    from headwise.tune.outcome import find
    from headwise.tune.table import measure
    from headwise.tune.tuner import Tuner

    table = measure(model, recalls, menu or default_menu(), folder or cache_folder(), watch, seed)
    watch("reading the documents densely")
    tuner = Tuner(model, [dense_answers(model, recall) for recall in recalls], table, tokens, seed)
    return find(tuner, budget, quality, watch)


def cache_folder() -> Path:
    """Where plans and measurements are kept between calls."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headwise"


def checked(model: PreTrainedModel, tokenizer: Any, plan: Plan, context: int, seed: int, watch: Watcher) -> Plan:
    """The plan with the verdict of `headwise check` in it."""
    from headwise.assets import NOVEL_TITLE, novel
    from headwise.bench.check import Checker, Limits
    from headwise.bench.job import novel_job

    job = novel_job(tokenizer, novel(), context, title=NOVEL_TITLE, seed=seed, new_tokens=200)
    verdict = Checker(model, tokenizer, job, seed).check(plan, Limits(), watch)
    return replace(plan, quality={**plan.quality, "check": verdict})


def told(outcome: Outcome) -> list[str]:
    """What was tried, by bytes, and what was taken."""
    lines = ["bytes of dense   loss, nats   answers right   plan"]
    for one in sorted(outcome.quality["trials"], key=lambda trial: trial["held"]):
        mark = ">" if one == outcome.quality["chosen"] else " "
        lines.append(f"{mark} {one['of_dense']:12.1%} {one['loss']:12.4f} {one['right']:15.1%}   {one['name']}")
    return lines


def _tokens(text: str) -> int:
    """`"32k"` -> 32768."""
    from headwise.errors import HeadwiseError

    number, factor = (text[:-1], 1024) if text[-1:] in ("k", "K") else (text, 1)
    if not number.isdigit() or not int(number):
        raise HeadwiseError(f"--context {text} is no number of tokens; write it like 8192 or 32k")
    return int(number) * factor


def _budget(memory: str | None, share: float | None, dense: int) -> int:
    """Bytes that may be held."""
    from headwise.errors import HeadwiseError
    from headwise.shapes import parse_bytes

    if memory is not None and share is not None:
        raise HeadwiseError(f"--memory {memory} and --share {share:g} limit the same; give one of them")
    if memory is not None:
        return parse_bytes(memory)
    if share is not None and not 0 < share <= 1:
        raise HeadwiseError(f"--share {share:g} is no share of dense bytes; give one above 0 and up to 1")
    return int((share or SHARE) * dense)


def _source(recalls: list[Any]) -> dict[str, Any]:
    """What the plan was found on, and how to find it again."""
    from headwise.bench.protocol import digest
    from headwise.bench.provenance import versions

    data = [[one.ids.tolist(), [[q.tolist(), a.tolist()] for q, a in one.asked]] for one in recalls]
    command = "headwise tune " + " ".join(sys.argv[2:])
    return {"data": digest(data), "command": command, "versions": versions()}
