"""Text for a terminal, as it is: what names look like markup, emoji or control codes stays what was typed."""

from __future__ import annotations

import re

from rich.style import StyleType
from rich.text import Text

# Control characters but line ends and tabs, halves of characters, and marks that turn the direction of writing.
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """The text with what a terminal would act on, or cannot write, as its escape: `\\x1b`."""
    return HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def plain(text: str, style: StyleType = "") -> Text:
    """The text as rich shows it without reading it."""
    return Text(visible(text), style=style)
