"""RULER's, LongBench's and needle files that a user has, one JSON object a line, read as they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from pydantic import BaseModel, RootModel

from headwise.errors import ContextError, HeadwiseError
from headwise.files import text_lines
from headwise.schema import checked_json
from headwise.tasks.base import OPENING, Ask, Count, Item, Space, Task, register
from headwise.tasks.scores import any_found, overlap, share_found


class Ruler(BaseModel):
    """A line of RULER's files. The question is the last line of its prompts; it is put apart, so that no eviction sees
    it."""

    input: str
    outputs: list[str]
    answer_prefix: str = ""

    def line(self) -> Line:
        """As it is asked."""
        document, _, question = self.input.rstrip().rpartition("\n")
        return Line(document, f"\n{question}{self.answer_prefix}", tuple(self.outputs))


class LongBench(BaseModel):
    """A line of LongBench's files."""

    context: str
    input: str
    answers: str | list[str]

    def line(self) -> Line:
        """As it is asked."""
        return _asked(self.context, self.input, self.answers)


class Needle(BaseModel):
    """A line of the user's own file."""

    context: str
    question: str
    answer: str | list[str]

    def line(self) -> Line:
        """As it is asked."""
        return _asked(self.context, self.question, self.answer)


FORMS: dict[str, type[Ruler] | type[LongBench] | type[Needle]] = {
    "ruler": Ruler,
    "longbench": LongBench,
    "needle": Needle,
}


@dataclass(frozen=True)
class Line:
    """One line: what is read, what is asked, what is right."""

    document: str
    prompt: str
    answers: tuple[str, ...]


def _asked(document: str, question: str, answers: str | list[str]) -> Line:
    told = (answers,) if isinstance(answers, str) else tuple(answers)
    return Line(document, f"\n\nQuestion: {question}\nAnswer:" if question else "\n\nAnswer:", told)


def read_lines(path: str) -> list[Line]:
    """What a file asks; raises HeadwiseError naming the line and the field where it cannot be read."""
    form = form_of(path)
    fix = f"write it as {form} files are"
    return [
        checked_json(FORMS[form], text, f"{path}, line {number}", HeadwiseError, fix).line()
        for number, text in enumerate(text_lines(Path(path), HeadwiseError), 1)
        if text.strip()
    ]


def form_of(path: str) -> str:
    """The form of a file, a key of FORMS, told by the fields of its first line that is not blank."""
    needed = "; ".join(f"{form}: {', '.join(needs(model))}" for form, model in FORMS.items())
    numbered = ((number, text) for number, text in enumerate(text_lines(Path(path), HeadwiseError), 1) if text.strip())
    number, first = next(numbered, (0, ""))
    if not number:
        raise HeadwiseError(f"{path} has no lines; write one JSON object a line, with the fields of one of {needed}")
    fix = "write one JSON object a line, see docs/reference/tasks.md"
    keys = checked_json(_Object, first, f"{path}, line {number}", HeadwiseError, fix).root
    for form, model in FORMS.items():
        if all(key in keys for key in needs(model)):
            return form
    raise HeadwiseError(f"{path} has no form that is known; its lines need the fields of one of {needed}")


class _Object(RootModel[dict[str, Any]]):
    """Any JSON object."""


def needs(model: type[BaseModel]) -> list[str]:
    """The fields that a line must have."""
    return [name for name, field in model.model_fields.items() if field.is_required()]


@register
@dataclass(frozen=True)
class FromFile(Task):
    """The lines of a file that fit the context, whole; nothing is cut, so lines too long are left out.

    path: a .jsonl file. Scored as its form is: RULER by the share of its outputs found in the answer (any of them where
    the file's name has "qa" in it), LongBench by the F1 of words, needles by whether an answer is found.
    """

    name: ClassVar[str] = "file"
    family: ClassVar[str] = "reading"
    source: ClassVar[str] = "files of RULER (2404.06654), LongBench (2308.14508), or context, question, answer"
    path: str = ""

    def items(self, tokens: Count, context: int, count: int, seed: int) -> list[Item]:
        lines = read_lines(self.path)
        room = Space(tokens, context)
        items = [Item(line.document, (room.ask(line.prompt, *line.answers),)) for line in lines if line.answers]
        needed = [tokens(item.document) + OPENING + context - OPENING - room.left(item.asks) for item in items]
        fitting = [item for item, size in zip(items, needed, strict=True) if size <= context]
        if not fitting:
            raise ContextError(
                f"{self.name}: no line of {self.path} fits {context} tokens; give a context of "
                f"{min(needed, default=0)} or more"
            )
        self.rng(seed, 0).shuffle(fitting)
        return fitting[:count]

    def item(self, room: Space, rng: Random, number: int) -> Item:
        return self.items(room.tokens, room.context, number + 1, 0)[number]

    def score(self, ask: Ask, output: str) -> float:
        form = form_of(self.path)
        if form == "longbench":
            return overlap(ask.expected, output.strip().partition("\n")[0])
        if form == "ruler" and "qa" not in Path(self.path).name:
            return share_found(ask.expected, output)
        return any_found(ask.expected, output)
