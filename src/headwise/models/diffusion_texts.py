"""What masked-diffusion hosts are trained on and asked: sums worked out line by line, and a novel, by characters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from random import Random

from headwise.assets import novel
from headwise.errors import HeadwiseError, did_you_mean

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
END, MASK = len(CHARACTERS), len(CHARACTERS) + 1  # ids of what follows an answer, and of what is not known yet
VOCABULARY = MASK + 1
NEWLINE = CHARACTERS.index("\n")
HELD = 2**40  # seeds from here on are of examples that are never trained on
HELD_OUT = 0.1  # of the novel, its end


@dataclass(frozen=True)
class Example:
    """A prompt and what follows it, as ids of characters."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def encode(text: str) -> tuple[int, ...]:
    """The ids of a text's characters; what is none of CHARACTERS becomes a space."""
    return tuple(max(CHARACTERS.find(one), 0) if one in CHARACTERS else CHARACTERS.index(" ") for one in text)


def decode(ids: list[int]) -> str:
    """The text of ids, up to the first END; what is masked reads as "_"."""
    known = ids[: ids.index(END)] if END in ids else ids
    return "".join("_" if one == MASK else CHARACTERS[one] for one in known)


class Texts(ABC):
    """A kind of text. name: as commands say it. length: of prompt and answer together, END after it."""

    name: str
    length: int

    @abstractmethod
    def example(self, seed: int) -> Example:
        """One of them; from the seed HELD on those that nothing was trained on."""


@dataclass(frozen=True)
class Sums(Texts):
    """A first number and `steps` changes of it, such as "7+5-4:"; the answer works them out, a line each, "7+5=12"."""

    steps: int = 4
    name: str = "sums"
    length: int = 48

    def example(self, seed: int) -> Example:
        random = Random(f"sums/{seed}")
        have = random.randrange(1, 20)
        asked, lines = str(have), []
        for _ in range(self.steps):
            by = random.randrange(1, 10)
            sign = "+" if by > have or (have + by < 100 and random.random() < 0.5) else "-"
            after = have + by if sign == "+" else have - by
            asked += f"{sign}{by}"
            lines.append(f"{have}{sign}{by}={after}")
            have = after
        return Example(encode(asked + ":"), encode("\n".join(lines) + "\n"))


@dataclass(frozen=True)
class Novel(Texts):
    """Pieces of the built-in novel: 32 characters, and the 32 that follow them."""

    name: str = "novel"
    length: int = 64

    def example(self, seed: int) -> Example:
        text, random = _novel(), Random(f"novel/{seed}")
        edge = round(len(text) * (1 - HELD_OUT))
        first, last = (edge, len(text)) if seed >= HELD else (0, edge)
        place = random.randrange(first, last - self.length)
        half = self.length // 2
        return Example(text[place : place + half], text[place + half : place + self.length])


@cache
def _novel() -> tuple[int, ...]:
    return encode(novel())


TEXTS: dict[str, Texts] = {one.name: one for one in (Sums(), Novel())}


def texts(name: str) -> Texts:
    """The kind of text of that name."""
    if name not in TEXTS:
        raise HeadwiseError(f"there is no kind of text '{name}'{did_you_mean(name, TEXTS)}; give one of {list(TEXTS)}")
    return TEXTS[name]
