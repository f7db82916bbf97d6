"""How turns become text: by the chat template of a model's tokenizer, or by plain text around each question."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headwise.bench.job import CHAT, PLAIN
from headwise.errors import HeadwiseError
from headwise.schema import Facts

PLACE = "TheAnswerStandsHere"  # in the place of an answer, to see what a template writes after one


class Turn(Facts):
    """What was said, and what the model answered."""

    said: str
    answer: str


class Wording(ABC):
    """What text is read for a conversation: `opening` once, then `turn` for each thing that is said."""

    starts: bool  # whether the tokenizer's own opening tokens are put before the text

    @abstractmethod
    def opening(self, document: str) -> str:
        """What is read before anything was said; "" without a document."""

    @abstractmethod
    def turn(self, document: str, turns: Sequence[Turn], said: str) -> str:
        """What is read when `said` comes after `turns`: what ends the last answer, and all that is put around the new
        words."""

    @abstractmethod
    def whole(self, document: str, turns: Sequence[Turn], said: str) -> str | None:
        """The whole conversation as it is written from its turns; None where nobody says how that would be."""

    @abstractmethod
    def ended(self, answer: str) -> bool:
        """Whether an answer is at its end without the model saying so."""


@dataclass(frozen=True)
class Templated(Wording):
    """By the chat template of a tokenizer, which writes the tokens that open a sequence itself."""

    tokenizer: Any
    starts = False

    def opening(self, document: str) -> str:
        """Up to the end of the document, with which the first message begins."""
        if not document:
            return ""
        text, found, _ = self._written(document, (), PLACE).partition(f"\n\n{PLACE}")
        if not found:
            raise HeadwiseError(
                "the chat template does not write a message as it is, so that no document can be read before a "
                "question; give --template with {ask} in it"
            )
        return text

    def turn(self, document: str, turns: Sequence[Turn], said: str) -> str:
        """The end of the last answer and the new message, as the template writes them after any answer."""
        if not turns:
            return self._written(document, (), said).removeprefix(self.opening(document))
        marked = self._written(document, [*turns[:-1], Turn(said=turns[-1].said, answer=PLACE)], said)
        _, found, after = marked.rpartition(PLACE)
        if not found:
            raise HeadwiseError(
                "the chat template leaves out what was answered, so that no conversation goes on by it; give "
                "--template with {ask} in it"
            )
        return after

    def whole(self, document: str, turns: Sequence[Turn], said: str) -> str | None:
        """By the template, from the beginning."""
        return self._written(document, turns, said)

    def ended(self, answer: str) -> bool:
        """Never: there is a token for it."""
        return False

    def _written(self, document: str, turns: Sequence[Turn], said: str) -> str:
        saids = [*(turn.said for turn in turns), said]
        if document:
            saids[0] = f"{document}\n\n{saids[0]}"
        messages = [{"role": "user", "content": saids[0]}]
        for turn, following in zip(turns, saids[1:], strict=True):
            messages += [{"role": "assistant", "content": turn.answer}, {"role": "user", "content": following}]
        try:
            text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template is a program, of the tokenizer's author
            said_first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise HeadwiseError(
                f"the chat template of this model does not take the conversation ({said_first}); give --template with "
                "{ask} in it"
            ) from None
        return text


@dataclass(frozen=True)
class Plain(Wording):
    """By text with `{ask}` in it, for models without a chat template. An answer ends with its line: such models do not
    tell that they are through."""

    template: str = PLAIN
    starts = True

    def opening(self, document: str) -> str:
        """The document."""
        return document

    def turn(self, document: str, turns: Sequence[Turn], said: str) -> str:
        """The template with the new words in it."""
        text = self.template.replace("{ask}", said)
        return text if document or turns else text.lstrip("\n")

    def whole(self, document: str, turns: Sequence[Turn], said: str) -> str | None:
        """Nobody says: the text is what was read."""
        return None

    def ended(self, answer: str) -> bool:
        """Whether a line is full."""
        return "\n" in answer.lstrip()


def wording_of(tokenizer: Any, template: str = "") -> Wording:
    """The wording that `template` names: text with `{ask}` in it, "chat" for the tokenizer's chat template, "" for that
    where there is one and else plain text."""
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if template == CHAT and not has_template:
        raise HeadwiseError(
            "this model's tokenizer has no chat template; leave --template out or give a text with {ask}"
        )
    if template in ("", CHAT):
        return Templated(tokenizer) if has_template else Plain()
    if "{ask}" not in template:
        raise HeadwiseError(f"--template {template!r} has no place for what is said; put {{ask}} where it goes")
    return Plain(template)
