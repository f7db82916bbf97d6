"""Text for a terminal, as it is: what names look like markup, emoji or control codes stays what was typed."""

from __future__ import annotations

import re

from rich.console import Console
from rich.style import StyleType
from rich.text import Text

# Control characters but line ends and tabs, halves of characters, and marks that turn the direction of writing.
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")

LEAST_WIDTH = 150  # of a table that goes to a file or a pipe


def stdout() -> Console:
    """The terminal, or a wide enough page where output goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, LEAST_WIDTH))


def visible(text: str) -> str:
    """The text with what a terminal would act on, or cannot write, as its escape: `\\x1b`."""
    return HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def plain(text: str, style: StyleType = "") -> Text:
    """The text as rich shows it without reading it."""
    return Text(visible(text), style=style)
