"""The commands, one file each: `@command("name")` on the function that typer is to call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import typer

from headwise.cli.renamed import Command
from headwise.rooms import Room

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Subcommand:
    """A command's function, and its settings for typer."""

    function: Callable[..., Any]
    settings: dict[str, Any]


COMMANDS: Room[Subcommand | typer.Typer] = Room("command", "headwise.cli.commands")


def command(name: str, **settings: Any) -> Callable[[Function], Function]:
    """Function decorator: makes a command known by its name. settings: of typer's own `command`."""

    def add(function: Function) -> Function:
        COMMANDS.add(name, Subcommand(function, {"cls": Command} | settings))
        return function

    return add
