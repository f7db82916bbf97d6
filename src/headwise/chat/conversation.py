"""A conversation: what was said, token by token, and a cache that has read the beginning of it."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch

from headwise.bench.job import encode
from headwise.chat.wording import Turn, Wording
from headwise.engine.persist import save_session, session_extra
from headwise.errors import ContextError, HeadwiseError, SessionError
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.schema import Count, Facts, checked
from headwise.seams.transformers.cache import Cache, PreTrainedModel
from headwise.seams.transformers.drive import LEAST_CHUNK, Progress, end_tokens, feed, prefill, written

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer writes for a part of a character


class Saved(Facts):
    """What a file of a conversation says beside the session: every token, the turns, and the recipe or the plan's
    path."""

    ids: list[Count]
    document: str
    turns: list[Turn]
    followed: str


class Conversation:
    """A conversation with `model`. `ids` are all its tokens; `cache` has read the first of them, the others with the
    next turn, so that it may be stopped anywhere.

    followed: the recipe, or the path of the plan file, that the cache follows. chunk: tokens of a prefill piece, None
    for one pass. where: `seed`, `resident` and `folder` of the cache.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        wording: Wording,
        followed: str = "",
        *,
        chunk: int | None = 2048,
        **where: Any,
    ) -> None:
        self.model, self.tokenizer, self.wording, self.chunk, self.where = model, tokenizer, wording, chunk, where
        self.cache, self.followed = Cache(model, _meant(followed), **where), followed
        self.ids: list[int] = []
        self.document, self.turns = "", list[Turn]()
        self.rewritten: int | None = None  # the first token that the chat template would write otherwise by now

    @property
    def read(self) -> int:
        """Tokens that the cache has read."""
        return self.cache.get_seq_length()

    def open(self, document: str, progress: Progress | None = None) -> None:
        """Begin anew with a document, which is read before anything is asked."""
        document = document.strip()
        if not document:
            raise ContextError("the document is empty; give one with some text in it")
        ids = self._encode(self.wording.opening(document), first=True)
        self._refuse_full(len(ids))
        self.reset()
        self.ids, self.document = ids, document
        self._catch_up(progress)

    def hear(self, said: str, progress: Progress | None = None) -> torch.Tensor:
        """Read what is said, and no more than that: the logits [1, vocab] with which an answer begins.

        When it is stopped, what was said belongs to the conversation, and the rest of it is read with the next turn.
        """
        new, before = self._new_tokens(said), len(self.ids)
        self._refuse_full(before + len(new))
        self.ids += new
        self.turns.append(Turn(said=said, answer=""))
        try:
            return self._catch_up(progress)
        except HeadwiseError:
            del self.ids[max(before, self.read) :]
            del self.turns[-1]
            raise

    def answer(self, logits: torch.Tensor, limit: int) -> Generator[str, None, None]:
        """The answer after `logits`, of up to `limit` tokens: the text that each of them adds, as it is written.

        Close the iterator to stop it; what was written until then belongs to the conversation.
        """
        longest, ends, told = self.cache.plan.longest, self._ends(), ""
        room = limit if longest is None else min(limit, longest - len(self.ids))
        start = len(self.ids)
        try:
            for token in written(self.model, self.cache, logits, room):
                self.ids.append(token)
                if token in ends:
                    return
                text = self._text(self.ids[start:])
                whole = told if text.endswith(UNFINISHED) else text
                yield whole[len(told) :]
                told = whole
                if self.wording.ended(text):
                    return
        finally:
            self.turns[-1] = Turn(said=self.turns[-1].said, answer=self._text(self.ids[start:]))

    def follow(self, followed: str, progress: Progress | None = None) -> None:
        """Go on under another recipe or plan: what the cache had read is read again, as what an eviction dropped is
        nowhere else. Where that fails, all is as it was."""
        cache = Cache(self.model, _meant(followed), **self.where)
        if self.read:
            prefill(self.model, cache, self._tensor(self.ids[: self.read]), self.chunk, progress)
        self.cache, self.followed = cache, followed

    def reset(self) -> None:
        """Forget all that was said, and the document."""
        self.cache = Cache(self.model, self.cache.plan, **self.where)
        self.ids, self.document, self.turns, self.rewritten = [], "", [], None

    def save(self, path: Path) -> None:
        """Write the conversation to one file."""
        if self.cache.session is None:
            raise SessionError("nothing was said yet; there is nothing to save")
        facts = {"ids": self.ids, "document": self.document, "turns": [turn.model_dump() for turn in self.turns]}
        save_session(self.cache.session, path, {"chat": facts | {"followed": self.followed}})

    def load(self, path: Path) -> None:
        """Go on with a saved conversation of this model, under the recipe or plan that it followed."""
        told = session_extra(path).get("chat")
        if told is None:
            raise SessionError(f"{path} is a session without a conversation; load it with headwise.Cache.load")
        saved = checked(Saved, told, str(path), SessionError, "save the conversation again")
        cache = Cache.load(self.model, _meant(saved.followed), path, **self.where)
        if cache.get_seq_length() > len(saved.ids):
            raise SessionError(f"{path} holds fewer tokens than its cache has read; save the conversation again")
        self.reset()
        self.cache, self.followed = cache, saved.followed
        self.ids, self.document, self.turns = saved.ids, saved.document, saved.turns

    def _new_tokens(self, said: str) -> list[int]:
        """The tokens that saying something adds. Where the chat template would by now write what was said before in
        other tokens than were read, that is noted, and the cache is kept as it is."""
        new = self._encode(self.wording.turn(self.document, self.turns, said), first=not self.ids)
        if self.ids and new[:1] == self.ids[-1:] and self.ids[-1] in self._ends():
            new = new[1:]  # the model has ended its answer itself
        whole = self.wording.whole(self.document, self.turns, said)
        if whole is not None and self.rewritten is None:
            self.rewritten = _first_difference(self.ids + new, self._encode(whole, first=True))
        return new

    def _ends(self) -> set[int]:
        """Tokens that end an answer: the model's own, and the one that the chat template puts after any answer, where
        that is a special one: files of models do not always name it."""
        ends = end_tokens(self.model)
        after = self._encode(self.wording.turn("", [Turn(said="a", answer="b")], "c"), first=False)[:1]
        return ends | {one for one in after if one in self.tokenizer.all_special_ids}

    def _catch_up(self, progress: Progress | None) -> torch.Tensor:
        """Read what is not read yet; logits [1, vocab] after it. More than a draft's worth of tokens is a prompt, after
        which budgets count what there is by then."""
        ids = self._tensor(self.ids[self.read :])
        if ids.shape[1] < LEAST_CHUNK:
            return feed(self.model, self.cache, ids)
        return prefill(self.model, self.cache, ids, self.chunk, progress)

    def _refuse_full(self, tokens: int) -> None:
        """Refuse a conversation of so many tokens where no answer could come after them."""
        longest = self.cache.plan.longest
        if longest is not None and tokens >= longest:
            raise ContextError(
                f"the conversation would take {tokens} tokens and an answer; the model was trained on {longest} "
                "positions; begin anew with /reset, or use a model with a longer context"
            )

    def _encode(self, text: str, first: bool) -> list[int]:
        ids: list[int] = encode(self.tokenizer, text, start=first and self.wording.starts)[0].tolist()
        return ids

    def _text(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _tensor(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor([ids], dtype=torch.int64, device=self.model.device)


def _meant(followed: str) -> Recipe | Plan:
    """The recipe, or the plan of a file."""
    is_file = followed.endswith(".plan") or Path(followed).is_file()
    return Plan.load(followed) if is_file else Recipe.parse(followed)


def _first_difference(have: list[int], other: list[int]) -> int | None:
    """The place of the first token that differs; None where all are the same."""
    if have == other:
        return None
    same = [a == b for a, b in zip(have, other, strict=False)]
    return same.index(False) if False in same else len(same)
