"""Options that were called otherwise once: refused, with the new name."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from headwise.errors import HeadwiseError

RENAMED = {
    "run": {"--budget": "--share"},
    "bench": {
        "--model": "the first argument: headwise bench MODEL",
        "--recipes": "--recipe",
        "--plans": "--plan",
        "--tasks": "--task",
        "--budgets": "--share",
        "--contexts": "--context",
    },
    "calibrate": {"--budget": "--share"},
    "check": {"--model": "the second argument: headwise check PLAN MODEL"},
    "explain": {"--model": "the second argument: headwise explain RECIPE_OR_PLAN MODEL"},
    "fit": {"--memory": "--available"},
    "speed": {
        "--model": "the second argument: headwise speed RECIPE_OR_PLAN MODEL",
        "--contexts": "--context",
        "--memory": "--batch-memory",
    },
    "tune": {"--length": "--train-context"},
    "measure": {"--model": "the first argument: headwise train measure MODEL"},
}


class Command(TyperCommand):
    """A command that knows what its options were called once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse an old name before click calls it unknown."""
        old = RENAMED.get(self.name or "", {})
        for word in args:
            name = word.partition("=")[0]
            if name in old:
                raise HeadwiseError(f"{name} is now {old[name]}")
        return super().parse_args(ctx, args)
