"""Where headwise keeps files between calls."""

from __future__ import annotations

import os
from pathlib import Path

from headwise.errors import HeadwiseError


def cache_folder() -> Path:
    """The user's caches: fetched models, tuned plans, tables of what heads can do without, and what stopped commands
    finished."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "headwise"
    try:
        return Path.home() / ".cache" / "headwise"
    except RuntimeError:  # a user without a name, as in containers
        raise HeadwiseError("there is no home folder to keep files in; set HOME or XDG_CACHE_HOME") from None
