"""Which tokens came after which few tokens: the tables that drafts are looked up in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from headwise.decoding.base import Draft

Gram = tuple[int, ...]
KEPT = 4  # different tokens that are remembered after the same ones


class Newest:
    """By the last 1 to `longest` tokens, which tokens came after them the last times. Filled as a text grows."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self._next: dict[Gram, list[int]] = {}
        self._read: list[int] = []

    def read(self, ids: Sequence[int]) -> None:
        """Take in what a text has become: `ids` begins with what was taken in before, or is another text."""
        if list(ids[: len(self._read)]) != self._read:
            self._next, self._read = {}, []
        for end in range(len(self._read), len(ids)):
            for size in range(1, min(self.longest, end) + 1):
                gram = tuple(ids[end - size : end])
                before = [token for token in self._next.get(gram, ()) if token != ids[end]]
                self._next[gram] = [ids[end], *before[: KEPT - 1]]
        self._read = list(ids)

    def after(self, last: Sequence[int]) -> Iterator[int]:
        """The tokens after the ends of `last` that are known: of the longest end first, and of one end the newest."""
        for size in range(min(self.longest, len(last)), 0, -1):
            yield from self._next.get(tuple(last[-size:]), ())


class Counted:
    """By tokens that came before, the tokens that followed most often in `texts`; of several, the one seen first. Grams
    of one token are left out: they say too little of another text."""

    def __init__(self, longest: int, texts: Sequence[Sequence[int]]) -> None:
        self.longest = max(2, longest)
        counts: dict[Gram, dict[int, int]] = {}
        for ids in texts:
            for end in range(2, len(ids)):
                for size in range(2, min(self.longest, end) + 1):
                    found = counts.setdefault(tuple(ids[end - size : end]), {})
                    found[ids[end]] = found.get(ids[end], 0) + 1
        self._next = {gram: sorted(found, key=found.__getitem__, reverse=True)[:KEPT] for gram, found in counts.items()}

    def after(self, last: Sequence[int]) -> Iterator[int]:
        """The tokens after the ends of `last` that are known: of the longest end first, and of one end the usual."""
        for size in range(min(self.longest, len(last)), 1, -1):
            yield from self._next.get(tuple(last[-size:]), ())


Tables = Sequence[Newest | Counted]


def after(tables: Tables, last: Sequence[int]) -> Iterator[int]:
    """The tokens that tables know after `last`, each once: all of a table before any of the next."""
    return iter(dict.fromkeys(token for table in tables for token in table.after(last)))


def chain(tables: Tables, ids: Sequence[int], most: int) -> list[int]:
    """Up to `most` tokens after `ids`, each from the first table that knows one."""
    last, tokens = list(ids[-max((table.longest for table in tables), default=1) :]), list[int]()
    while len(tokens) < most and (found := next(after(tables, last), None)) is not None:
        tokens.append(found)
        last.append(found)
    return tokens


def branches(tables: Tables, ids: Sequence[int], most: int, drafts: int) -> Draft:
    """The `chain` after ids, and up to `drafts` - 1 others, which go on as a chain would, to the same depth.

    They leave it where the first table knows of another token, first at the end of the text, then a token later; where
    that makes too few, where the next table does. So a later table takes no place of a guess that an earlier one has.
    """
    tokens = chain(tables, ids, most)
    best, parents, left, known = tuple(tokens), list(range(-1, len(tokens) - 1)), drafts - 1, set[tuple[int, int]]()
    for table, place in ((table, place) for table in tables for place in range(len(best) if left else 0)):
        before = [*ids, *best[:place]]
        for other in after([table], before[-table.longest :]):
            if not left:
                return Draft(tokens, parents=parents)
            if other != best[place] and (place, other) not in known:
                known.add((place, other))
                first = len(tokens)
                tokens += [other, *chain(tables, [*before, other], most - place - 1)]
                parents += [place - 1, *range(first, len(tokens) - 1)]
                left -= 1
    return Draft(tokens, parents=parents)
