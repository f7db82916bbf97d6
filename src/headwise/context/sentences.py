"""Documents as sentences that join to them again, character for character."""

from __future__ import annotations

import re

END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+|\n+")


def sentences(document: str) -> list[str]:
    """The sentences of a document, each with the space after it: they join to the document."""
    edges = [0, *(found.end() for found in END.finditer(document)), len(document)]
    return [document[first:last] for first, last in zip(edges, edges[1:], strict=False) if last > first]
