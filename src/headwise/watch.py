"""How work that takes long reports its progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Watch: TypeAlias = Callable[[str, int, int], None]  # what is being done, steps done, steps in all


def within(watch: Watch, label: str, before: int, total: int) -> Callable[[str, int], None]:
    """Tells of a part of longer work: `label: what`, with the part's steps after `before` of `total`."""

    def tell(what: str, done: int) -> None:
        watch(f"{label}: {what}", before + done, total)

    return tell
