"""What plans are tuned on: documents of the tuning split with questions, and plain text with how it goes on.

And a plan that is tuned where there is none yet, or gets its verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from headwise.assets import NOVEL_TITLE, novel
from headwise.bench.checks.check import Checker, Limits
from headwise.bench.job import encode, novel_job, recalls
from headwise.errors import HeadwiseError
from headwise.observe import Recall
from headwise.plan import Plan
from headwise.seams.transformers.cache import PreTrainedModel, attach
from headwise.tasks.base import Task
from headwise.tasks.needle import NiahMultiquery, Restated
from headwise.tasks.perplexity import BookPerplexity
from headwise.tasks.taskbook import DEFAULT_TASKS, build_task
from headwise.tune.search import Wanted, tuned
from headwise.watch import Watch

ASKS = 16  # of a document at most: they are answered together, so that they cost less than another document
SHORT = 1024  # tokens of a tuning document where somebody waits for something else
TEXT = 64  # tokens of true continuation that count as an answer


def tuning_recalls(tokenizer: Any, context: int, count: int, seed: int, folder: Path | None = None) -> list[Recall]:
    """`count` documents of every kind, each with its questions at most `context` tokens; of the tuning split.

    Kinds: the default tasks of a comparison and plain text; with a `folder`, facts planted into each of its text files
    in two wordings, and how the file itself goes on.
    """
    books = [""] if folder is None else [str(path) for path in texts_of(folder)]
    found = []
    for book in books:
        for task in _tasks(book):
            found += recalls(tokenizer, task, context, count, seed, ASKS)
        found += _going_on(tokenizer, book, context, count, seed)
    return found


def texts_of(folder: Path) -> list[Path]:
    """The .txt and .md files of a folder; HeadwiseError where there is none."""
    found = sorted(path for path in folder.iterdir() if path.suffix in (".txt", ".md")) if folder.is_dir() else []
    if not found:
        raise HeadwiseError(f"--docs {folder}: there is no .txt or .md file in it; give a folder of text files")
    return found


def _tasks(book: str) -> Sequence[Task]:
    if book:
        return [kind(keys=ASKS, queries=ASKS, haystack=book, split="tune") for kind in (NiahMultiquery, Restated)]
    facts = {kind.name: kind(keys=ASKS, queries=ASKS, split="tune") for kind in (NiahMultiquery, Restated)}
    return [facts.get(name) or build_task(f'{name}(split="tune")') for name in DEFAULT_TASKS]


def _going_on(tokenizer: Any, book: str, context: int, count: int, seed: int) -> list[Recall]:
    texts = BookPerplexity(split="tune", path=book).texts(
        lambda text: encode(tokenizer, text).shape[1], context, count, seed
    )
    found = []
    for text in texts:
        after = encode(tokenizer, text.continuation)[:, : TEXT + 1]
        found.append(Recall(encode(tokenizer, text.document, start=True), ((after[:, :1], after[:, 1:]),)))
    return found


def kept_plan(
    model: PreTrainedModel, tokenizer: Any, tokens: int, budget: int, *, seed: int, folder: Path, watch: Any
) -> Path:
    """The plan tuned for these bytes and this prompt length: one of those in `folder`, or made and put there."""
    seam = attach(model)
    path = folder / f"{seam.fingerprint}-{budget}-{tokens}-{seed}.plan"
    if not path.is_file():
        watch(f"no ready plan fits: tuning one, kept as {path} (name a --recipe to go without)")
        recalls = tuning_recalls(tokenizer, min(SHORT, seam.geometry.max_positions), 1, seed)
        wanted = Wanted(budget, tokens, seed=seed)
        found = tuned(model, recalls, wanted, folder, None, watch, watch.finished)
        found.plan.save(path)
    return path


def novel_checker(model: PreTrainedModel, tokenizer: Any, context: int, seed: int, folder: Path) -> Checker:
    """What `headwise check` would hold a plan against; finished parts are kept in `folder`."""
    job = novel_job(tokenizer, novel(), context, title=NOVEL_TITLE, seed=seed, new_tokens=200)
    return Checker(model, tokenizer, job, seed, folder)


def checked(checker: Checker, plan: Plan, watch: Watch, each: Callable[[str], None]) -> Plan:
    """The plan with the verdict of `headwise check` in it."""
    return replace(plan, quality={**plan.quality, "check": checker.check(plan, Limits(), watch, each)})
