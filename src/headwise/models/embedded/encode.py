"""Fast ids of ASCII strings, and the pre-tokenised corpus with the places where it may be cut."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random

import numpy as np
from tokenizers import Tokenizer

# The pre-tokenizer of prepare.py for ASCII: digits stand alone, then the GPT-2 pattern.
_WORDS = re.compile(
    r"[0-9]|'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[^\sA-Za-z0-9]+|\s+(?=[0-9])|\s+(?!\S)|\s+",
)


class Encoder:
    """Ids of ASCII strings by a table of pre-tokens; equal to the tokenizer's own ids."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.vocab = self.tokenizer.get_vocab_size()
        self._known: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        """The ids of `text`, with no BOS."""
        ids: list[int] = []
        known = self._known
        for word in _WORDS.findall(text):
            found = known.get(word)
            if found is None:
                found = known[word] = self._new(word)
            ids += found
        return ids

    def _new(self, word: str) -> list[int]:
        if not word.isascii():
            raise ValueError(f"{word!r} is not ASCII; the fast encoder takes synthetic ASCII text only")
        return list(self.tokenizer.encode(word, add_special_tokens=False).ids)


class Texts:
    """One token file: slices of whole documents that begin and end between sentences."""

    def __init__(self, folder: Path, split: str, encoder: Encoder) -> None:
        meta = json.loads((folder / "meta.json").read_text())[split]
        self.ids = np.fromfile(folder / meta["file"], np.uint16)
        offsets = np.asarray(meta["offsets"], np.int64)
        self._ends = np.append(offsets[1:], len(self.ids)) - 1  # each document's EOS
        strings = [encoder.tokenizer.id_to_token(i) or "" for i in range(encoder.vocab)]
        ending = np.array([s.rstrip("\"')]")[-1:] in (".", "!", "?") for s in strings])
        space = np.array([s[:1] in ("Ġ", "Ċ") for s in strings])
        word = np.array([s[:1] == "Ġ" and s[1:2] not in ("", "Ġ", "Ċ") for s in strings])
        between = ending[self.ids[:-1]]
        self._ending, self._space = ending, space
        self._cuts = np.flatnonzero(between & space[self.ids[1:]]).astype(np.int64) + 1
        starts = np.flatnonzero(between & word[self.ids[1:]]).astype(np.int64) + 1
        room = self._ends[np.minimum(np.searchsorted(self._ends, starts), len(self._ends) - 1)] - starts
        self._starts, self._room = starts[room >= 16], room[room >= 16]

    def piece(self, rng: Random, size: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, cuts): at most `size` tokens from a random sentence on, ending at a sentence's end
        where one is near; `cuts` are the positions inside where a sentence may be put."""
        for _ in range(8):
            pick = rng.randrange(len(self._starts))
            if self._room[pick] >= size:
                break
        start = int(self._starts[pick])
        stop = start + min(size, int(self._room[pick]))
        first, last = (int(np.searchsorted(self._cuts, edge)) for edge in (start + 1, stop + 1))
        cuts = self._cuts[first:last]
        if len(cuts) and cuts[-1] - start >= (stop - start) // 2:
            stop = int(cuts[-1])
        return self.ids[start:stop], cuts - start

    def next_start(self, position: int) -> int:
        """The first place at or after `position` where a sentence begins with a space and a word."""
        return int(self._starts[min(int(np.searchsorted(self._starts, position)), len(self._starts) - 1)])

    def cuts(self, ids: np.ndarray) -> np.ndarray:
        """The positions inside `ids` between two sentences."""
        return np.flatnonzero(self._ending[ids[:-1]] & self._space[ids[1:]]) + 1

    def run(self, rng: Random, size: int) -> np.ndarray:
        """Exactly `size` tokens of running text; documents that end are followed by the next slice."""
        parts, left = [], size
        while left > 0:
            pick = rng.randrange(len(self._starts))
            start = int(self._starts[pick])
            part = self.ids[start : start + min(left, int(self._room[pick]) + 1)]
            parts.append(part)
            left -= len(part)
        return np.concatenate(parts)
