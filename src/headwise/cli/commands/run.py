"""`headwise run`: a long text, a budget, answers; dense beside the plan and its baselines."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli.commands import command
from headwise.cli.options import (
    Adapter,
    Asks,
    Chunk,
    Decode,
    Device,
    Drafts,
    Dtype,
    Folder,
    Fresh,
    Json,
    Marks,
    Memory,
    Model,
    Recipes,
    RemoteCode,
    Report,
    Resident,
    Seed,
    State,
    Template,
    Threads,
    Weights,
)  # fmt: skip
from headwise.report.terminal import plain

if TYPE_CHECKING:
    from headwise.bench.arms import Arm
    from headwise.bench.frame import Frame
    from headwise.bench.job import Job

SHARE = 0.25  # of dense bytes where nothing else is asked for
CONTEXT = 8192  # tokens of the built-in document for models that say nothing of their own

Share = Annotated[
    str | None, typer.Option(help=f"The same as a share of dense bytes, above 0 and up to 1; {SHARE} by default.")
]
Context = Annotated[
    str | None,
    typer.Option(help="Tokens of the built-in job, like 4096 or 8k; by default what the model carries, up to 8k."),
]


@dataclass(frozen=True)
class Wish:
    """The options of one call, as given; share and memory as numbers."""

    model: str | None
    prompt_file: Path | None
    asks: tuple[str, ...]
    recipes: tuple[str, ...]
    plan: Path | None
    memory: int | None
    share: float | None
    max_new_tokens: int
    context: int | None
    chunk: int
    facts: int
    template: str
    compare: bool
    seed: int
    dtype: str
    device: str
    resident: str | None
    folder: Path | None
    adapter: Path | None
    remote_code: bool
    draft: str | None
    weights: str | None
    marks: tuple[tuple[str, str], ...]
    decode: str | None


@command("run")
def run(
    model: Model = None,
    prompt_file: Annotated[Path | None, typer.Option(help="Read this text instead of the built-in novel.")] = None,
    ask: Asks = None,
    recipe: Recipes = None,
    mark: Marks = None,
    plan: Annotated[Path | None, typer.Option(help="A row for this plan file.")] = None,
    memory: Memory = None,
    share: Share = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to write: per answer, or after the novel.")] = 64,
    context: Context = None,
    chunk: Chunk = 2048,
    facts: Annotated[int, typer.Option(help="Facts planted in the novel, one question each.")] = 10,
    template: Template = "",
    no_compare: Annotated[
        bool, typer.Option("--no-compare", help="Only the rows asked for; no dense, no baseline.")
    ] = False,
    as_json: Json = False,
    report: Report = None,
    seed: Seed = 0,
    threads: Threads = None,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    resident: Resident = None,
    folder: Folder = None,
    adapter: Adapter = None,
    trust_remote_code: RemoteCode = False,
    draft: Drafts = None,
    weights: Weights = None,
    decode: Decode = None,
    state: State = None,
    fresh: Fresh = False,
) -> None:
    """Read a long text within a memory budget and answer questions about it, dense attention beside the plan."""
    from headwise.cli.given import byte_count, given, token_count
    from headwise.cli.given import mark as mark_of
    from headwise.cli.given import share as share_of
    from headwise.cli.state import check_state

    wish = Wish(
        model, prompt_file, tuple(ask or ()), tuple(recipe or ()), plan, given("--memory", memory, byte_count),
        given("--share", share, share_of), max_new_tokens, given("--context", context, token_count), chunk, facts,
        template, not no_compare, seed, dtype, device, resident, folder, adapter, trust_remote_code, draft,
        weights,
        tuple(mark_of("--mark", one) for one in mark or ()),
        decode,
    )  # fmt: skip
    _check(wish, report, threads)
    check_state(state)
    result = _perform(wish, threads, state, fresh)
    if report is not None:
        from headwise.report.page import write_page

        write_page(result, report)
    if as_json:
        typer.echo(json.dumps(result, indent=1))
    else:
        _show(result, report)


def _check(wish: Wish, report: Path | None, threads: int | None) -> None:
    """Refuse before any work what cannot be meant."""
    from headwise.cache.tiers import given_tier
    from headwise.cli.given import (
        check_chunk,
        check_contexts,
        check_least,
        check_marked,
        check_outputs,
        check_place,
        check_plan,
        check_text,
        place_of,
    )
    from headwise.errors import HeadwiseError
    from headwise.shapes import format_bytes

    if wish.share is not None and wish.memory is not None:
        memory = format_bytes(wish.memory)
        raise HeadwiseError(f"--share {wish.share:g} and --memory ({memory}) limit the same; give one of them")
    check_least(max_new_tokens=(wish.max_new_tokens, 1), facts=(wish.facts, 1), threads=(threads, 1))
    check_chunk(wish.chunk)
    if wish.asks and wish.prompt_file is None:
        raise HeadwiseError(f"--ask {wish.asks[0]!r} needs a text; give it with --prompt-file")
    if wish.context is not None and wish.prompt_file is not None:
        raise HeadwiseError(
            f"--context {wish.context} is for the built-in novel; leave it out, a prompt file is read whole"
        )
    check_text("--prompt-file", wish.prompt_file)
    check_outputs(report=report)
    given_tier(wish.resident, wish.folder)
    _check_steps(wish)
    if wish.marks and wish.prompt_file is None:
        raise HeadwiseError(f"--mark '{': '.join(wish.marks[0])}' needs a text; give it with --prompt-file")
    check_marked(wish.recipes, wish.marks)
    check_place(wish.dtype, wish.device)
    place = place_of(wish.model)
    check_contexts(place, () if wish.context is None else (wish.context,), remote_code=wish.remote_code)
    if wish.plan is not None:
        check_plan(wish.plan, place, wish.remote_code)


def _check_steps(wish: Wish) -> None:
    """Refuse recipes, drafts, decoders and weights that are not known, or do not go together."""
    from headwise.cli.given import check_adapted
    from headwise.decoders import decoder
    from headwise.decoding.speculate import drafter
    from headwise.errors import HeadwiseError
    from headwise.recipe import Recipe

    if wish.draft is not None:
        drafter(wish.draft)
    check_adapted(wish.adapter, wish.weights)
    recipes = [Recipe.parse(sentence) for sentence in wish.recipes]
    if wish.decode is None:
        return
    decoder(wish.decode)
    if wish.draft is not None:
        raise HeadwiseError(f"--draft {wish.draft} beside --decode {wish.decode}: leave one of them out")
    for part in ("select", "steer"):
        if beside := [str(one) for one in recipes if getattr(one, part) is not None]:
            raise HeadwiseError(
                f"--decode beside '{beside[0]}', which a second look cannot read; leave the {part} part out"
            )


def _perform(wish: Wish, threads: int | None, state: Path | None, fresh: bool) -> dict[str, Any]:
    """Everything between the options and the JSON object."""
    import torch

    from headwise.bench.frame import Frame
    from headwise.bench.run.chosen import compared
    from headwise.bench.run.rows import run_arms
    from headwise.bench.runner import Runner
    from headwise.bench.tuning import kept_plan
    from headwise.caches import cache_folder
    from headwise.cli.given import place_of
    from headwise.cli.progress import Watcher
    from headwise.cli.state import unfinished
    from headwise.compiled.process import fast_process
    from headwise.cost.prediction import check_memory
    from headwise.seams.transformers.adapters import put_adapter
    from headwise.seams.transformers.cache import attach
    from headwise.seams.transformers.load import load_pair, quiet
    from headwise.shapes import parse_bytes

    quiet()
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(wish.seed)
    name = place_of(wish.model)
    with Watcher() as watch:
        watch(f"loading {name}")
        tokenizer, model = load_pair(name, wish.dtype, wish.device, wish.remote_code)
        if wish.adapter is not None:
            put_adapter(model, wish.adapter)
        seam = attach(model)
        watch.say(str(fast_process(model, wish.weights)))
        watch("preparing the prompt")
        job = _job(wish, tokenizer, model.config, seam.geometry.max_positions)
        frame = Frame(seam, job.tokens, model.dtype)
        tune = partial(kept_plan, model, tokenizer, frame.tokens, seed=wish.seed, folder=cache_folder(), watch=watch)
        asked = _asked(wish, frame, tune)
        arms = compared(frame, asked, baselines=wish.prompt_file is None) if wish.compare else asked
        most = max(frame.bytes_of(arm.plan(frame)) for arm in arms)
        near = most if wish.resident is None else parse_bytes(wish.resident)
        check_memory(near, job.tokens, "the largest row")
        runner = Runner(
            model, tokenizer, seed=wish.seed, chunk=wish.chunk or None, resident=wish.resident, folder=wish.folder,
            draft=wish.draft, decode=wish.decode,
        )  # fmt: skip
        rows = []
        with unfinished("run", _decisive(wish, frame, job), watch, state=state, fresh=fresh) as folder:
            for row in run_arms(runner, job, frame, arms, watch, folder):
                watch.finished(row_line(row))
                rows.append(row)
    model_name = "embedded" if wish.model is None else wish.model
    return {"model": model_name, "prompt_tokens": job.tokens, "rows": rows, **_provenance(wish, frame, job)}


def _decisive(wish: Wish, frame: Frame, job: Job) -> list[Any]:
    """All that decides a row beside its plan, as JSON data."""
    read = [job.ids.tolist(), [[one.ids.tolist(), one.limit, one.ask.expected] for one in job.questions]]
    options = {name: str(value) for name, value in asdict(replace(wish, model=None, recipes=(), plan=None)).items()}
    return [frame.seam.fingerprint, str(frame.dtype), read, options]


def row_line(row: dict[str, Any]) -> str:
    """A finished row in a line."""
    from headwise.shapes import format_bytes

    facts = [f"{format_bytes(row['cache_bytes'])} held after {row['prefill_s']:.1f} s of reading"]
    if row["answers_total"] is not None:
        facts.append(f"{row['answers_right']} of {row['answers_total']} answers right")
    if row["perplexity"] is not None:
        facts.append(f"perplexity {row['perplexity']:.1f}")
    if row["decode_tokens_per_s"] is not None:
        facts.append(f"{row['decode_tokens_per_s']:.1f} tokens/s")
    return f"{row['recipe']}: {', '.join(facts)}"


def _job(wish: Wish, tokenizer: Any, config: Any, positions: int) -> Job:
    """What is read and asked; refused where prompt, questions and answers exceed the trained positions."""
    from headwise.assets import NOVEL_TITLE, novel
    from headwise.bench.job import asking_job, marked, novel_job
    from headwise.errors import ContextError

    if wish.prompt_file is None:
        carried = getattr(config, "headwise_context", positions if wish.model is None else min(CONTEXT, positions))
        context = carried if wish.context is None else wish.context
        if context > positions:
            raise ContextError(
                f"--context {context}: the model was trained on {positions} positions; give at most these"
            )
        return novel_job(
            tokenizer, novel(), context, title=NOVEL_TITLE, facts=wish.facts, seed=wish.seed,
            new_tokens=wish.max_new_tokens,
        )  # fmt: skip
    text = wish.prompt_file.read_text(encoding="utf-8", errors="replace")
    job = asking_job(
        tokenizer, text, list(wish.asks), title=str(wish.prompt_file), template=wish.template,
        max_new_tokens=wish.max_new_tokens,
    )  # fmt: skip
    job = marked(job, tokenizer, wish.marks) if wish.marks else job
    needed = job.tokens + max(question.ids.shape[1] + question.limit for question in job.questions)
    if needed > positions:
        raise ContextError(
            f"{wish.prompt_file} takes {job.tokens} tokens, {needed} with question and answer; the model was trained "
            f"on {positions} positions; shorten the text or --max-new-tokens, or use a model with a longer context"
        )
    return job


def _asked(wish: Wish, frame: Frame, tune: Callable[[int], Path]) -> list[Arm]:
    """A row for each recipe and plan asked for; else the default within the budget, tuned for --memory.

    tune: makes the plan file for a number of bytes, where dense attention takes more and no ready plan fits.
    """
    from headwise.assets import embedded_plan
    from headwise.bench.run.chosen import default_arm, default_target, plan_arm, recipe_arm, target_bytes

    limit = target_bytes(frame, wish.share, wish.memory)
    arms = [recipe_arm(frame, sentence, limit) for sentence in wish.recipes]
    if wish.plan is not None:
        arms.append(plan_arm(frame, wish.plan, limit))
    if arms:
        return arms
    target = default_target(frame, SHARE) if limit is None else limit
    ready = embedded_plan(target / frame.dense_bytes) if wish.model is None else None
    arm = default_arm(frame, target, ready)
    if wish.memory is None or frame.dense_bytes <= target or (ready is not None and arm.label == ready.stem):
        return [arm]
    return [plan_arm(frame, tune(target), target)]


def _provenance(wish: Wish, frame: Frame, job: Job) -> dict[str, Any]:
    """What produced the rows."""
    from headwise.bench.provenance import machine, versions

    return {
        "title": job.title,
        "template": job.template,
        "questions": [question.ask.prompt for question in job.questions],
        "continuation_tokens": 0 if job.continuation is None else job.continuation.shape[1] - 1,
        "seed": wish.seed,
        "chunk": wish.chunk,
        "max_new_tokens": wish.max_new_tokens,
        "dtype": str(frame.dtype).removeprefix("torch."),
        "device": wish.device,
        "resident": wish.resident,
        "draft": wish.draft,
        "weights": wish.weights,
        "marks": [": ".join(mark) for mark in wish.marks],
        "decode": wish.decode,
        "model_fingerprint": frame.seam.fingerprint,
        "geometry": {name: told for name, told in frame.seam.geometry.describe().items() if name != "windows"},
        "versions": versions(),
        "machine": machine(),
    }


def _show(result: dict[str, Any], report: Path | None) -> None:
    """The table for people, and with a prompt file the answers."""
    from headwise.report.table import notes, terminal_table
    from headwise.report.terminal import stdout

    console = stdout()
    if result["rows"][0]["answers_total"] is None:
        for place, ask in enumerate(result["questions"]):
            console.print(plain(f"\n{ask or 'continued:'}", "bold"))
            for row in result["rows"]:
                got = " ".join(row["answers"][place]["got"].split())
                console.print(plain(f"  {row['recipe']}: {got}"), soft_wrap=True)
        console.print()
    console.print(terminal_table(result, console.width))
    for line in notes(result):
        console.print(plain(line), soft_wrap=True)
    if report is not None:
        console.print(plain(f"report: {report}"), soft_wrap=True)
