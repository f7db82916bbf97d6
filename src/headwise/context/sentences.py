"""Documents as sentences that join to them again, character for character."""

from __future__ import annotations

import re
from itertools import pairwise

END = re.compile(r"(?<=[.!?])[\"'\u201d\u2019)\]]*\s+|\n+")


def sentences(document: str) -> list[str]:
    """The sentences of a document, each with the space after it: they join to the document."""
    edges = [0, *(found.end() for found in END.finditer(document)), len(document)]
    return [document[first:last] for first, last in pairwise(edges) if last > first]
