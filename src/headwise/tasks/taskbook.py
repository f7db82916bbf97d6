"""The tasks a comparison may name: those of the package, and a user's own by where they are."""

from __future__ import annotations

import importlib
from typing import Any

from headwise.errors import HeadwiseError
from headwise.registry import with_settings
from headwise.sentence import read_call
from headwise.tasks import task
from headwise.tasks.base import Task

# What the embedded model answers well above chance, as only that can tell methods apart on it; of these the tasks that
# ask much of one document, as making and reading a document for one answer would take half the time of its row.
DEFAULT_TASKS = ("copy_passage", "five_turns", "kv_recall", "niah_multiquery", "restated", "trace_first")


def build_task(sentence: str) -> Task:
    """`passkey`, `niah_multikey(keys=8)` or `my_module:MyTask(size=4)` as a task with its settings."""
    made = task(sentence) if module_of(sentence) is None else _own(sentence)
    if not isinstance(made, Task):
        raise HeadwiseError(
            f"'{sentence}' is judged by likelihood, not by answers; `headwise check` measures distributions"
        )
    return made


def module_of(sentence: str) -> str | None:
    """The module that a task of a user's own is imported from; None for a task of the package."""
    module, colon, _ = sentence.partition("(")[0].partition(":")
    return module if colon else None


def facts_of(made: Task) -> dict[str, Any]:
    """What a task's items and scores depend on beside context, count and seed, for the record."""
    return {"name": made.name, "version": made.version, "settings": made.settings()}


def _own(sentence: str) -> Any:
    module, _, rest = sentence.partition(":")
    call = read_call(rest, "write it like my_module:MyTask(size=4)")
    try:
        found = getattr(importlib.import_module(module), call.name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise HeadwiseError(f"no task at '{sentence}' ({error}); write it like my_module:MyTask") from None
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise HeadwiseError(f"'{sentence}' is no task; make it a subclass of headwise.tasks.base.Task")
    return with_settings(found, call)
