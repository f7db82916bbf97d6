"""`headwise tune`: from a number of bytes to the plan that loses least on documents, with what it was chosen over."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.caches import cache_folder
from headwise.cli.commands import command
from headwise.cli.options import Device, Docs, Dtype, Fresh, Json, Memory, Model, Report, Seed, State
from headwise.report.terminal import visible

if TYPE_CHECKING:
    from headwise.plan import Plan
    from headwise.recipe import Recipe

SHARE = 0.1  # of dense bytes where neither bytes nor time are asked for
LONGEST = 2048  # tokens of a tuning document where the context is longer: shares of it hold at every length


@dataclass(frozen=True)
class Wish:
    """The options of one call, as given, sizes and times as numbers. tokens: the context; length: tokens of a tuning
    document; menu: candidates, none for the built-in ones; drafts: drafters that are measured over the plan."""

    model: str | None
    memory: int | None
    share: float | None
    seconds: float | None
    tokens: int
    docs: Path | None
    documents: int
    length: int
    quality: float | None
    menu: tuple[Recipe, ...]
    state: Path | None
    fresh: bool
    drafts: tuple[str, ...]
    check: bool
    seed: int
    dtype: str
    device: str


@command("tune")
def tune(
    call: typer.Context,
    model: Model = None,
    out: Annotated[Path, typer.Option(help="The plan file to write.")] = Path("tuned.plan"),
    memory: Memory = None,
    share: Annotated[
        str | None, typer.Option(help="The same as a share of dense bytes; 0.1 by default, with --time 1.0.")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="What decoding a token may take after such a prompt, here, like 20ms.")
    ] = None,
    context: Annotated[str, typer.Option(help="Tokens of the prompts the plan is for, like 8192 or 32k.")] = "8k",
    docs: Docs = None,
    documents: Annotated[int, typer.Option(help="Documents of each kind.")] = 1,
    train_context: Annotated[
        str | None, typer.Option(help=f"Tokens of a tuning document; the context, but at most {LONGEST}, by default.")
    ] = None,
    quality: Annotated[
        float | None, typer.Option(help="Take the fewest bytes that answer this share of what dense answers.")
    ] = None,
    candidate: Annotated[
        list[str] | None, typer.Option(help="A recipe heads may be given instead of the built-in ones; may repeat.")
    ] = None,
    state: State = None,
    fresh: Fresh = False,
    report: Report = None,
    as_json: Json = False,
    draft: Annotated[
        list[str] | None,
        typer.Option(help="Measure over the plan which drafter pays: auto, or a drafter's phrase; may repeat."),
    ] = None,
    no_check: Annotated[bool, typer.Option("--no-check", help="Leave the verdict of `headwise check` out.")] = False,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "cpu",
) -> None:
    """Find the plan that loses least within a number of bytes, and write it with its proof.

    With --time, the bytes are as many as still let a token be decoded so quickly on this machine, by measurement.
    Documents are of the tuning split, whose text and keys no evaluation uses, or lie in --docs. The plan file holds
    every plan that was tried, and the verdict of `headwise check`. With --draft auto, drafters are timed on them, too.
    """
    from headwise.cli.given import byte_count, check_outputs, command_line, given, seconds, token_count
    from headwise.cli.given import share as share_of
    from headwise.recipe import Recipe

    check_outputs(out=out, report=report)
    tokens = token_count("--context", context)
    length = given("--train-context", train_context, token_count) or min(tokens, LONGEST)
    wish = Wish(
        model, given("--memory", memory, byte_count), given("--share", share, share_of),
        given("--time", time, seconds),
        tokens, docs, documents, length, quality, tuple(Recipe.parse(one) for one in candidate or ()), state, fresh,
        _drafts(draft or ()), not no_check, seed, dtype, device,
    )  # fmt: skip
    _check(wish)
    _finish(*_perform(wish, command_line(call)), out, report, as_json)


def _finish(plan: Plan, result: dict[str, Any], out: Path, report: Path | None, as_json: bool) -> None:
    """Write the result and print it."""
    from headwise.bench.drafting import draft_lines

    plan.save(out)
    if report is not None:
        from headwise.report.tune_page import write_page

        write_page(result, report)
    if as_json:
        typer.echo(json.dumps(result, indent=1))
        return
    for line in [*trial_lines(result), *(draft_lines(result["drafts"]) if result["drafts"] else ())]:
        typer.echo(visible(line))
    typer.echo(visible(f"wrote {out}: {plan.doubt or 'passed `headwise check`'}"))


def _drafts(asked: Sequence[str]) -> tuple[str, ...]:
    """The drafters that are asked for; auto names those that need no training."""
    from headwise.bench.drafting import UNTRAINED
    from headwise.decoding.speculate import drafter

    named = [phrase for one in asked for phrase in (UNTRAINED if one == "auto" else (one,))]
    for phrase in named:
        drafter(phrase)
    return tuple(dict.fromkeys(named))


def _check(wish: Wish) -> None:
    """Refuse before any work what cannot be meant."""
    from headwise.bench.tuning import texts_of
    from headwise.cli.given import check_contexts, check_least, check_place, place_of
    from headwise.cli.state import check_state
    from headwise.errors import HeadwiseError
    from headwise.shapes import format_bytes
    from headwise.tune.table import check_menu

    if wish.memory is not None and wish.share is not None:
        memory = format_bytes(wish.memory)
        raise HeadwiseError(f"--memory ({memory}) and --share {wish.share:g} limit the same; give one of them")
    if wish.quality is not None and not 0 < wish.quality <= 1:
        raise HeadwiseError(f"--quality {wish.quality:g} is no share of dense attention's answers; give 0.95 or so")
    check_least(documents=(wish.documents, 1))
    if wish.menu:
        check_menu(wish.menu)
    if wish.docs is not None:
        texts_of(wish.docs)
    check_place(wish.dtype, wish.device)
    check_state(wish.state)
    check_contexts(place_of(wish.model), (wish.tokens, wish.length))


def _perform(wish: Wish, command: str) -> tuple[Plan, dict[str, Any]]:
    """Everything between the options and the files: the plan, and the JSON object that its page is drawn of."""
    from headwise.bench.drafting import drafts_tried
    from headwise.bench.tuning import checked, novel_checker, tuning_recalls
    from headwise.cli.given import place_of
    from headwise.cli.progress import Watcher
    from headwise.cli.state import unfinished
    from headwise.seams.transformers.cache import attach
    from headwise.seams.transformers.load import load_pair, quiet
    from headwise.tune.menu import default_menu
    from headwise.tune.search import Wanted, tuned
    from headwise.tune.table import forget_tables

    quiet()
    place = place_of(wish.model)
    with Watcher() as watch:
        watch(f"loading {place}")
        tokenizer, model = load_pair(place, wish.dtype, wish.device)
        dense = attach(model).geometry.dense_bytes(wish.tokens, model.dtype)
        budget = wish.memory or int((wish.share or (SHARE if wish.seconds is None else 1.0)) * dense)
        watch("making the documents")
        recalls = tuning_recalls(tokenizer, wish.length, wish.documents, wish.seed, wish.docs)
        source, menu = _source(recalls, command), [str(recipe) for recipe in wish.menu]
        facts = [attach(model).fingerprint, str(model.dtype), source["data"], menu, wish.tokens, wish.seed]
        tables = wish.state or cache_folder()
        if wish.fresh:
            forget_tables(model, recalls, wish.menu or default_menu(), tables, wish.seed)
        with unfinished("tune", facts, watch, state=wish.state, fresh=wish.fresh) as folder:
            wanted = Wanted(budget, wish.tokens, wish.menu, wish.quality, wish.seconds, wish.seed)
            outcome = tuned(model, recalls, wanted, tables, folder, watch, watch.finished)
            plan = outcome.plan
            if wish.check:
                checker = novel_checker(model, tokenizer, wish.length, wish.seed, folder)
                plan = checked(checker, plan, watch, watch.finished)
            drafts = drafts_tried(model, plan, recalls, wish.drafts, folder, watch) if wish.drafts else None
    result = {"model": wish.model or "embedded", **outcome.as_json(), "check": plan.quality.get("check"),
              "drafts": drafts, **source}  # fmt: skip
    return replace(plan, quality={**plan.quality, "source": source}), result


def trial_lines(result: dict[str, Any]) -> list[str]:
    """What was tried, by bytes, and what was taken."""
    from headwise.shapes import format_bytes

    lines = ["bytes of dense   loss, nats   of dense's answers   plan"]
    for one in sorted(result["trials"], key=lambda trial: trial["held"]):
        mark = ">" if one == result["chosen"] else " "
        lines.append(f"{mark} {one['of_dense']:12.1%} {one['loss']:12.4f} {one['kept']:20.1%}   {one['name']}")
    if result["sliding"]:
        lines.append(
            f"{result['sliding']:.1%} of dense bytes lie in sliding layers, where a plan chooses the codec and not the "
            "tokens"
        )
    if (seconds := result["seconds"]) is not None:
        lines.append(
            f"a token takes {1e3 * seconds['taken']:.1f} ms after {result['tokens']} tokens, "
            f"{1e3 * seconds['allowed']:g} were allowed, for up to {format_bytes(result['budget'])}; --memory "
            f"{result['budget']}B finds this plan again without timing"
        )
    return lines


def _source(recalls: list[Any], command: str) -> dict[str, Any]:
    """What the plan was found on, and how to find it again."""
    from headwise.bench.protocol import digest
    from headwise.bench.provenance import versions

    data = [[one.ids.tolist(), [[q.tolist(), a.tolist()] for q, a in one.asked]] for one in recalls]
    return {"data": digest(data), "command": command, "versions": versions()}
