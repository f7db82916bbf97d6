"""Models trained on text, which read documents of the room of tasks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from headwise.assets import embedded_model
from headwise.bench.job import encode
from headwise.claims.hosts import TEXTS, Document, Host, Stage, add_host
from headwise.errors import HeadwiseError
from headwise.seams.transformers.load import load_model, load_tokenizer
from headwise.tasks.base import Space, Task
from headwise.tasks.perplexity import BookPerplexity
from headwise.tasks.taskbook import build_task

AFTER = 96  # tokens of a text's true continuation


@dataclass(frozen=True)
class Pretrained(Host):
    """tasks: they take turns, document by document. context: tokens of a document with its longest question and
    answer. dtype: of weights and cache. Models of this size answer two thirds to four fifths of eight questions about
    one document, and all of one alone, which would take eight times as many documents."""

    texts: ClassVar[bool] = True

    least_dense: float = 0.6
    tasks: tuple[str, ...] = ()
    context: int = 1500
    dtype: str = "bfloat16"

    def load(self, folder: Path) -> Stage:
        return Reading(self)


class Reading(Stage):
    """A loaded model with its tokenizer."""

    def __init__(self, host: Pretrained) -> None:
        self.host = host
        where: str | Path = embedded_model() if host.model_name == "embedded" else host.model_name
        self.model, self.tokenizer = load_model(where, host.dtype), load_tokenizer(where)
        self.tasks = [build_task(one) for one in host.tasks]
        if not self.tasks:
            raise HeadwiseError(f"the host {host.name} is asked nothing; name at least one task")

    def document(self, number: int, share: float = 1.0) -> Document:
        if number >= TEXTS:
            return self._text(number - TEXTS)
        task: Task = self.tasks[number % len(self.tasks)]
        item = task.item(Space(self._count, round(share * self.host.context)), task.rng(0, number), number)
        asks = tuple((encode(self.tokenizer, one.prompt), encode(self.tokenizer, one.expected[0])) for one in item.asks)
        return Document(encode(self.tokenizer, item.document, start=True), asks)

    def _text(self, number: int) -> Document:
        """A stretch of the novel and how it goes on."""
        book = BookPerplexity(predicted=AFTER)
        drawn = book.texts(self._count, self.host.context, number + 1, 0)[number]
        return Document(
            encode(self.tokenizer, drawn.document, start=True), after=encode(self.tokenizer, drawn.continuation)
        )

    def _count(self, text: str) -> int:
        return encode(self.tokenizer, text).shape[1]


TASKS = ("niah_multiquery", "restated")
add_host(
    Pretrained(
        "smollm2",
        "SmolLM2-135M-Instruct, really pretrained: 30 layers of 9 query and 3 KV heads",
        model_name="smollm2",
        tasks=TASKS,
    )
)
add_host(
    Pretrained(
        "gemma3",
        "Gemma-3-270M, really pretrained: 3 layers read everything, 15 a window of 512 tokens that no eviction touches",
        model_name="gemma3",
        tasks=TASKS,
    )
)
for _name, _about, _contexts in (
    ("smollm2", "SmolLM2-135M-Instruct", (4096, 8192)),
    ("gemma3", "Gemma-3-270M", (8192, 16384)),
):
    for _context in _contexts:
        add_host(
            Pretrained(
                f"{_name}_{_context // 1024}k",
                f"{_about} over documents of {_context} tokens",
                model_name=_name,
                tasks=TASKS,
                context=_context,
            )
        )
add_host(
    Pretrained(
        "embedded",
        "the embedded model: its retrieval heads were planted in layers 1 and 2, so that whatever leaves the first "
        "layers whole looks good on it",
        model_name="embedded",
        tasks=("niah_multiquery", "kv_recall"),
        dtype="float32",
    )
)
