"""Scores that several tasks share; each is a share of what was asked for, 0 to 1."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")


def share_found(expected: Sequence[str], output: str) -> float:
    """Share of the expected strings that stand somewhere in the output, whatever their case (RULER, 2404.06654)."""
    text = output.lower()
    return sum(_stands_in(one.strip().rstrip(".").lower(), text) for one in expected) / len(expected)


def any_found(expected: Sequence[str], output: str) -> float:
    """1 where one of the expected strings stands in the output, else 0 (RULER's score of questions on passages)."""
    return max(share_found([one], output) for one in expected)


def leading_words(expected: str, output: str) -> float:
    """Share of the expected words that the output gives before its first wrong one."""
    wanted, found = expected.split(), output.split()
    right = 0
    for one, other in zip(wanted, found, strict=False):
        if one != other:
            break
        right += 1
    return right / len(wanted)


def overlap(expected: Sequence[str], output: str) -> float:
    """Best F1 of the words of the output against one of the expected answers (LongBench, 2308.14508, section 3.2)."""
    return max(_f1(_words(one), _words(output)) for one in expected)


def _stands_in(value: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", _ARTICLES.sub(" ", text.lower()))


def _f1(wanted: list[str], found: list[str]) -> float:
    same = sum((Counter(wanted) & Counter(found)).values())
    return 2 * same / (len(wanted) + len(found)) if same else 0.0
