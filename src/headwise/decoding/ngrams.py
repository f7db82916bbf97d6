"""Which token came after which few tokens: the tables that drafts are looked up in."""

from __future__ import annotations

from collections.abc import Sequence

Gram = tuple[int, ...]


class Newest:
    """By the last 1 to `longest` tokens, which token came after them the last time. Filled as a text grows."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self._next: dict[Gram, int] = {}
        self._read: list[int] = []

    def read(self, ids: Sequence[int]) -> None:
        """Take in what a text has become: `ids` begins with what was taken in before, or is another text."""
        if list(ids[: len(self._read)]) != self._read:
            self._next, self._read = {}, []
        for end in range(len(self._read), len(ids)):
            for size in range(1, min(self.longest, end) + 1):
                self._next[tuple(ids[end - size : end])] = ids[end]
        self._read = list(ids)

    def after(self, last: Sequence[int]) -> int | None:
        """The token after the longest end of `last` that is known, or None."""
        for size in range(min(self.longest, len(last)), 0, -1):
            if (token := self._next.get(tuple(last[-size:]))) is not None:
                return token
        return None


class Counted:
    """By tokens that came before, the token that followed most often in `texts`; of several, the one seen first. Grams
    of one token are left out: they say too little of another text."""

    def __init__(self, longest: int, texts: Sequence[Sequence[int]]) -> None:
        self.longest = max(2, longest)
        counts: dict[Gram, dict[int, int]] = {}
        for ids in texts:
            for end in range(2, len(ids)):
                for size in range(2, min(self.longest, end) + 1):
                    found = counts.setdefault(tuple(ids[end - size : end]), {})
                    found[ids[end]] = found.get(ids[end], 0) + 1
        self._next = {gram: max(found, key=found.__getitem__) for gram, found in counts.items()}

    def after(self, last: Sequence[int]) -> int | None:
        """The token after the longest end of `last` that is known, or None."""
        for size in range(min(self.longest, len(last)), 1, -1):
            if (token := self._next.get(tuple(last[-size:]))) is not None:
                return token
        return None


def chain(tables: Sequence[Newest | Counted], ids: Sequence[int], most: int) -> list[int]:
    """Up to `most` tokens after `ids`, each from the first table that knows one."""
    last, tokens = list(ids[-max((table.longest for table in tables), default=1) :]), list[int]()
    while len(tokens) < most:
        found = next((token for table in tables if (token := table.after(last)) is not None), None)
        if found is None:
            break
        tokens.append(found)
        last.append(found)
    return tokens
