"""How long work tells of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Watch: TypeAlias = Callable[[str, int, int], None]  # what is being done, steps done, steps in all
