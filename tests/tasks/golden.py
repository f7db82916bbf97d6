"""The hashes of what tasks ask, in golden.json: `python -m tests.tasks.golden` writes them anew."""

from __future__ import annotations

import json
from pathlib import Path

from headwise import tasks
from headwise.tasks.base import Likelihood, Task, digest

GOLDEN = Path(__file__).with_name("golden.json")
CONTEXTS = (700, 3000)


def characters(text: str) -> int:
    """A count that no tokenizer's training changes: four characters a token."""
    return -(-len(text) // 4)


def fingerprint(task: Task | Likelihood) -> str:
    """A hash of a few items of the task."""
    make = task.items if isinstance(task, Task) else task.texts
    return digest([one for context in CONTEXTS for one in make(characters, context, 2, 0)])


def names() -> list[str]:
    """Every task but the one that needs a file."""
    return [name for name in tasks.TASKS.all() if name != "file"]


if __name__ == "__main__":
    found = {name: {"version": tasks.task(name).version, "digest": fingerprint(tasks.task(name))} for name in names()}
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
