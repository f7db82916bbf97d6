"""`headwise tune`: from a number of bytes to the plan that loses least on documents, with what it was chosen over."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass, replace
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

SHARE = 0.1  # of dense bytes where neither bytes nor time are asked for
SHORT = 1024  # tokens of a tuning document where somebody waits for something else
LONGEST = 2048  # tokens of a tuning document where the context is longer: shares of it hold at every length


@dataclass(frozen=True)
class Wish:
    """The options of one call, as given; tokens: the context."""

    model: str | None
    memory: str | None
    share: float | None
    seconds: float | None
    tokens: int
    docs: Path | None
    documents: int
    length: int | None
    quality: float | None
    candidates: tuple[str, ...]
    state: Path | None
    check: bool
    seed: int
    dtype: str
    device: str


def tune(
    call: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help="A model's path or hub id; the embedded model by default.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The plan file to write.")] = Path("tuned.plan"),
    memory: Annotated[str | None, typer.Option(help="Bytes the cache may hold after the prompt, like 512MiB.")] = None,
    share: Annotated[
        float | None, typer.Option(help="The same as a share of dense bytes; 0.1 by default, with --time 1.")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="What decoding a token may take after such a prompt, here, like 20ms.")
    ] = None,
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

    With --time, the bytes are as many as still let a token be decoded so quickly on this machine, by measurement.
    Documents are of the tuning split, whose text and keys no evaluation uses, or lie in --docs. The plan file holds
    every plan that was tried, and the verdict of `headwise check`.
    """
    from headwise.cli.given import check_report, seconds, token_count
    from headwise.report.tune_page import write_page

    check_report(report)
    wish = Wish(
        model, memory, share, None if time is None else seconds("--time", time), token_count(context), docs, documents,
        length, quality, tuple(candidate or ()), state, not no_check, seed, dtype, device,
    )  # fmt: skip
    plan, result = _perform(wish, _command(call))
    plan.save(out)
    if report is not None:
        write_page(result, report)
    if as_json:
        typer.echo(json.dumps(result, indent=1))
        return
    for line in told(result):
        typer.echo(line)
    typer.echo(f"wrote {out}: {plan.doubt or 'passed `headwise check`'}")


def _perform(wish: Wish, command: str) -> tuple[Plan, dict[str, Any]]:
    """Everything between the options and the files: the plan, and the JSON object that its page is drawn of."""
    from headwise.assets import embedded_model
    from headwise.bench.tuning import tuning_recalls
    from headwise.cli.progress import Watcher
    from headwise.engine.hf import attach
    from headwise.engine.load import load_model, load_tokenizer, quiet
    from headwise.recipe import Recipe

    quiet()
    menu = [Recipe.parse(sentence) for sentence in wish.candidates]
    with Watcher(Console(stderr=True)) as watch:
        watch("loading")
        place = str(embedded_model()) if wish.model is None else wish.model
        model, tokenizer = load_model(place, wish.dtype, wish.device), load_tokenizer(place)
        budget = _budget(wish, attach(model).geometry.dense_bytes(wish.tokens, model.dtype))
        length = wish.length or min(wish.tokens, LONGEST)
        recalls = tuning_recalls(tokenizer, length, wish.documents, wish.seed, wish.docs)
        outcome = tuned(
            model, recalls, budget, wish.tokens, menu=menu, quality=wish.quality, folder=wish.state, seed=wish.seed,
            watch=watch, seconds=wish.seconds,
        )  # fmt: skip
        plan = outcome.plan
        if wish.check:
            plan = checked(model, tokenizer, plan, length, wish.seed, watch)
    source, check = _source(recalls, command), plan.quality.get("check")
    result = {"model": wish.model or "embedded", **outcome.as_json(), "check": check, **source}
    return replace(plan, quality={**plan.quality, "source": source}), result


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
    seconds: float | None = None,
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
    return find(tuner, budget, quality, watch, seconds)


def kept_plan(model: PreTrainedModel, tokenizer: Any, tokens: int, seed: int, watch: Watcher, budget: int) -> Path:
    """The plan tuned for these bytes and this prompt length: one of the user's caches, or made and put there."""
    from headwise.bench.tuning import tuning_recalls
    from headwise.engine.hf import attach

    seam = attach(model)
    path = cache_folder() / f"{seam.fingerprint}-{budget}-{tokens}-{seed}.plan"
    if not path.is_file():
        watch(f"no ready plan fits: tuning one, kept as {path} (name a --recipe to go without)")
        recalls = tuning_recalls(tokenizer, min(SHORT, seam.geometry.max_positions), 1, seed)
        found = tuned(model, recalls, budget, tokens, menu=[], quality=None, folder=None, seed=seed, watch=watch)
        found.plan.save(path)
    return path


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


def told(result: dict[str, Any]) -> list[str]:
    """What was tried, by bytes, and what was taken."""
    from headwise.shapes import format_bytes

    lines = ["bytes of dense   loss, nats   answers right   plan"]
    for one in sorted(result["trials"], key=lambda trial: trial["held"]):
        mark = ">" if one == result["chosen"] else " "
        lines.append(f"{mark} {one['of_dense']:12.1%} {one['loss']:12.4f} {one['right']:15.1%}   {one['name']}")
    if (seconds := result["seconds"]) is not None:
        lines.append(
            f"a token takes {1e3 * seconds['taken']:.1f} ms after {result['tokens']} tokens, "
            f"{1e3 * seconds['allowed']:g} were allowed, for up to {format_bytes(result['budget'])}; --memory "
            f"{result['budget']}B finds this plan again without timing"
        )
    return lines


def _budget(wish: Wish, dense: int) -> int:
    """Bytes that may be held."""
    from headwise.errors import HeadwiseError
    from headwise.shapes import parse_bytes

    memory, share = wish.memory, wish.share
    if memory is not None and share is not None:
        raise HeadwiseError(f"--memory {memory} and --share {share:g} limit the same; give one of them")
    if memory is not None:
        return parse_bytes(memory)
    if share is not None and not 0 < share <= 1:
        raise HeadwiseError(f"--share {share:g} is no share of dense bytes; give one above 0 and up to 1")
    return int((share or (SHARE if wish.seconds is None else 1.0)) * dense)


def _source(recalls: list[Any], command: str) -> dict[str, Any]:
    """What the plan was found on, and how to find it again."""
    from headwise.bench.protocol import digest
    from headwise.bench.provenance import versions

    data = [[one.ids.tolist(), [[q.tolist(), a.tolist()] for q, a in one.asked]] for one in recalls]
    return {"data": digest(data), "command": command, "versions": versions()}


def _command(call: typer.Context) -> str:
    """The command as it was given."""
    words = ["headwise", str(call.info_name)]
    for name, value in call.params.items():
        if (source := call.get_parameter_source(name)) is None or source.name != "COMMANDLINE":
            continue
        option = "" if name == "model" else f"--{name.removeprefix('as_').replace('_', '-')}"
        for one in value if isinstance(value, list | tuple) else [value]:
            words += [word for word in (option, "" if one is True else shlex.quote(str(one))) if word]
    return " ".join(words)
