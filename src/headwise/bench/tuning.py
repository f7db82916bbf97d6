"""What plans are tuned on: documents of the tuning split with questions, and plain text with how it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headwise.bench.job import encode
from headwise.bench.taskbook import DEFAULT_TASKS, build_task
from headwise.bench.tasks.base import Task
from headwise.bench.tasks.needle import NiahMultiquery, Restated
from headwise.bench.tasks.perplexity import BookPerplexity
from headwise.calibrate.heads import Recall
from headwise.errors import HeadwiseError

ASKS = 6  # of a document at most: more documents say more than more questions
TEXT = 64  # tokens of true continuation that count as an answer


def tuning_recalls(tokenizer: Any, context: int, count: int, seed: int, folder: Path | None = None) -> list[Recall]:
    """`count` documents of every kind, each with its questions at most `context` tokens; of the tuning split.

    Kinds: the default tasks of a comparison and plain text; with a `folder`, facts planted into each of its text files
    in two wordings, and the file's own going-on.
    """
    books = [""] if folder is None else [str(path) for path in texts_of(folder)]
    recalls = []
    for book in books:
        for task in _tasks(book):
            recalls += _asked(tokenizer, task, context, count, seed)
        recalls += _going_on(tokenizer, book, context, count, seed)
    return recalls


def texts_of(folder: Path) -> list[Path]:
    """The .txt and .md files of a folder; HeadwiseError where there is none."""
    found = sorted(path for path in folder.iterdir() if path.suffix in (".txt", ".md")) if folder.is_dir() else []
    if not found:
        raise HeadwiseError(f"--docs {folder}: there is no .txt or .md file in it; give a folder of text files")
    return found


def _tasks(book: str) -> Sequence[Task]:
    if book:
        return [kind(keys=8, queries=8, haystack=book, split="tune") for kind in (NiahMultiquery, Restated)]
    return [build_task(f'{name}(split="tune")') for name in DEFAULT_TASKS]


def _asked(tokenizer: Any, task: Task, context: int, count: int, seed: int) -> list[Recall]:
    items = task.items(lambda text: encode(tokenizer, text).shape[1], context, count, seed)
    return [
        Recall(
            encode(tokenizer, item.document, start=True),
            tuple((encode(tokenizer, ask.prompt), encode(tokenizer, ask.expected[0])) for ask in item.asks[:ASKS]),
        )
        for item in items
    ]


def _going_on(tokenizer: Any, book: str, context: int, count: int, seed: int) -> list[Recall]:
    texts = BookPerplexity(split="tune", path=book).texts(
        lambda text: encode(tokenizer, text).shape[1], context, count, seed
    )
    recalls = []
    for text in texts:
        after = encode(tokenizer, text.continuation)[:, : TEXT + 1]
        recalls.append(Recall(encode(tokenizer, text.document, start=True), ((after[:, :1], after[:, 1:]),)))
    return recalls
