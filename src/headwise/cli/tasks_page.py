"""docs/reference/tasks.md, made of the tasks themselves."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from headwise.assets import embedded_scores
from headwise.tasks import MARGIN, TASKS, answerable
from headwise.tasks.base import FAMILIES, Made, Task

PUBLISHED = (
    (
        "RULER (2404.06654), thirteen kinds",
        "the tasks named `ruler_...`, with its settings and in own words; `template='small'` words the needles for "
        "base models; `ruler_cwe` leaves out the worked example",
    ),
    (
        "The Sparse Frontier (2504.17768), nine tasks",
        "`passage_qa` (SQuAD), `choice_qa` (QuALITY, TOEFL), `ruler_niah_multikey_3(keys=3, queries=3)`, `ruler_vt`, "
        "`ruler_cwe`, `story_retrieval`, `story_multihop`, `story_filtering`",
    ),
    (
        "KVFundaBench (2502.01941), ability groups",
        "`few_shot_...` for knowledge, commonsense, arithmetic and code, made up; long understanding and writing are "
        "the other tasks. Safety is left out: no string tells it",
    ),
    (
        "Zoology's MQAR (2312.04927)",
        "`mqar` as words; `mqar.Layout` gives its sequences of ids, for models trained on them",
    ),
    ("LongBench (2308.14508), RULER's own files, needle files", "`file(path='...')`"),
    ("CAB (2210.07661), four attention patterns", "left out: there are no layers to train yet"),
)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


HEAD = f"""A task makes items: a document and questions about it, at any length, for any tokenizer, from a seed. It asks
each question on a fork of the cache that has read the document alone, so no eviction has seen it. Everything is made
offline: of the shipped novel, of word lists, or of a file that the user names.

- **Score**: each answer gets 0 to 1 as its task says below; a task's score is the mean over its answers. Answers of
  one document share its cache and are not independent.
- **Chance**: what a guess gets among the answers that the document or the prompt offers, by every question; 0 where
  nothing is offered. A score means what it is above chance.
- **Length**: document, longest prompt and its answer fit the context, and stay short of it by a clause of text or by
  one example, chapter or passage.
- **Split**: `split="tune"` reads the novel's second book and other keys than `split="test"`: fit methods on the one,
  show figures of the other.
- **Same for the same seed**: a task's `version` rises with any change of its items or scores, a test holds their
  hashes, and results carry a hash of what was asked. The context is no part of the seed: lengths are compared on equal
  facts.
- **No cache of items**: making one takes about twenty to fifty passes of the tokenizer over its document, which is
  little beside one prefill of the same document; a cache would be one more thing that can be stale.

A task is written as a phrase: `niah_multikey`, `niah_multikey(keys=4)`, `kv_recall(split="tune")`.

```python
from headwise import tasks

task = tasks.task("niah_multikey(keys=4)")
(item,) = task.items(lambda text: len(text) // 4, 1000, 1, seed=0)
print(item.asks[0].prompt, "->", item.asks[0].expected)
```

## Published sets

{_table(("set", "here"), PUBLISHED)}

## Files of your own

- `file(path="x.jsonl")` reads one JSON object a line, in the form that the first line's fields tell: RULER's (`input`,
  `outputs`; the last line of the input is the question), LongBench's (`context`, `input`, `answers`; one wording of
  the question for all its sets, and F1 for all), or `context`, `question`, `answer`. Nothing is cut: lines that do not
  fit the context are left out.
- `passage_qa(path="x.json")` reads passages and questions in the format of SQuAD 1.1, as XQuAD has it: `data`, of
  `paragraphs`, of `context` and `qas`, of `question` and `answers`, of `text`. Every fifth passage is for tuning.
- `niah_single(haystack="book.txt")` and `book_perplexity(path="book.txt")` read a text file; its first three fifths
  are for tests.

## To add a task

Write one file in `src/headwise/tasks/`; nothing else is edited. It holds a frozen dataclass with a `name`, a
`family`, a `source`, and `item()`; its fields are its settings, described in its docstring. Families:
{", ".join(FAMILIES)}. `Room` has what is needed to fill a context: `ask`, `left`, `longest`, `half`, `fill`.

```python
from dataclasses import dataclass
from random import Random

from headwise.tasks.base import Item, Space, Task, register
from headwise.tasks.haystack import buried, hay


@register
@dataclass(frozen=True)
class Bell(Task):
    \"\"\"How often a bell rang, hidden in a text.\"\"\"

    name = "bell"
    family = "retrieval"
    source = "own"

    def item(self, room: Space, rng: Random, number: int) -> Item:
        times, depth = rng.randrange(2, 13), rng.random()
        ask = room.ask("\\nQuestion: How often did the bell ring?\\nAnswer:", f" {{times}}", depth=depth)
        text = hay("novel", self.split, rng, room.context)
        return Item(buried(room, text, [f"The bell rang {{times}} times."], [depth], [ask]), (ask,))
```

Then add to the tests a reader that finds the answer in the text (`tests/tasks/solvers.py`), write the hashes
(`python -m tests.tasks.golden`) and the embedded model's scores (`python benchmarks/tasks.py --tasks bell`).
A task whose answers are no strings overrides `score`; one that is judged by the likelihood of true text is a
`Likelihood` and gives `texts`.
"""
NOTE = f"""## What the embedded model can do

Dense attention, by `python benchmarks/tasks.py`: score (chance). A task counts as answered where the score, less what
few answers leave open, is {MARGIN} above chance at all contexts measured. Only such tasks can tell methods apart on
this model; default tables leave the others out, which are for instruction-tuned models.
"""


def tasks_page(made: str) -> str:
    """The page; `made` is the note that it is generated."""
    listed = TASKS.all()
    ordered = sorted(listed.items(), key=lambda pair: (FAMILIES.index(pair[1].family), pair[0]))
    rows = ((f"[{name}](#{name})", cls.family, _first(cls)) for name, cls in ordered)
    lines = ["# Tasks", "", made, HEAD, "## The tasks", "", _table(("name", "family", "what is asked"), rows), ""]
    lines += [NOTE, _scores()]
    for name, cls in ordered:
        lines += ["", f"## {name}", "", *_described(cls)]
    return "\n".join(lines) + "\n"


def _first(cls: type) -> str:
    """The docstring's first paragraph on one line."""
    return " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())


def _described(cls: type[Made]) -> list[str]:
    """What one task does: its own words and those of its family's base, its settings, score and source."""
    bases = [base for base in cls.__mro__[1:] if issubclass(base, Task) and base not in (Task, Made)]
    texts = [inspect.getdoc(one) or "" for one in (cls, *bases)]
    settings = ", ".join(f"{field.name}={field.default!r}" for field in fields(cls))
    return ["\n\n".join(texts), "", f"- version {cls.version}; source: {cls.source}", f"- settings: `{settings}`"]


def _scores() -> str:
    measured: dict[str, Any] = json.loads(embedded_scores().read_text(encoding="utf-8"))
    contexts = sorted({context for rows in measured.values() for context in rows}, key=int)
    able = answerable()
    rows = (
        (f"`{phrase}`", *(_cell(rows.get(context)) for context in contexts), "yes" if able.get(phrase) else "")
        for phrase, rows in sorted(measured.items())
    )
    return _table(("task", *contexts, "answered"), rows)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return f"{row['nats']:.2f} nats a token" if "nats" in row else f"{row['score']:.2f} ({row['chance']:.2f})"
