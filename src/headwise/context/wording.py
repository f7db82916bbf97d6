"""How documents and a question become the text of a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headwise.errors import HeadwiseError

PLACE = "TheDocumentsStandHere"  # in the place of documents, to see what a chat template writes around them
HEAD = "Answer the question by the documents, in a few words.\n\n"


@dataclass(frozen=True)
class Wording:
    """What is written before the documents, around each, and after them. `{question}` and `{document}` are put in.

    starts: whether the tokenizer's own opening tokens come first. A document has no number: the text around it is the
    same wherever it stands.
    """

    head: str = HEAD
    document: str = "{document}\n\n"
    tail: str = "Question: {question}\nAnswer:"
    starts: bool = True

    def __post_init__(self) -> None:
        if "{document}" not in self.document:
            raise HeadwiseError(f"the wording of a document, {self.document!r}, has no place {{document}}; put it in")
        if "{question}" not in self.tail:
            raise HeadwiseError(f"the end of the wording, {self.tail!r}, has no place {{question}}; put it in")

    def texts(self, documents: tuple[str, ...], question: str) -> list[str]:
        """The pieces of a prompt: what comes before the documents, each document, and what comes after them."""
        around = [one.replace("{question}", question) for one in (self.head, self.tail)]
        return [around[0], *(self.document.replace("{document}", one) for one in documents), around[1]]

    def asking_first(self) -> Wording:
        """The same with the question before the documents as well, so that documents are read knowing it."""
        if "{question}" in self.head:
            return self
        return Wording(f"{self.head}Question: {{question}}\n\n", self.document, self.tail, self.starts)


def wording_of(tokenizer: Any) -> Wording:
    """The usual wording, as a user's message where the tokenizer has a chat template."""
    if not getattr(tokenizer, "chat_template", None):
        return Wording()
    messages = [{"role": "user", "content": PLACE}]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    before, found, after = text.partition(PLACE)
    if not found:
        raise HeadwiseError("the chat template does not write a message as it is; give a Wording of your own")
    return Wording(before + HEAD, tail="Question: {question}" + after + "Answer:", starts=False)
